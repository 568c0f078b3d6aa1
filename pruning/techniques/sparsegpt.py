"""SparseGPT: remove column by column what costs least, and let the columns that follow make up for it.

Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot,
https://arxiv.org/abs/2301.00774. Deliberate differences from its code: (1) exactly the fraction of each column block
is removed, not one weight more; (2) damping grows where it must, and the log says so; (3) a block of columns is a
whole number of N:M groups; (4) damping is in units of the mean over inputs that are not dead: with ones for those, as
in its code, what is damped how much depends on the scale of the inputs.
"""

from typing import Annotated, ClassVar

from msgspec import Meta
from torch import Tensor

from pruning.passes.statistics import Gram, InputStatistics, Statistic
from pruning.techniques.mathematics.columns import Sparse, sweep
from pruning.techniques.mathematics.patterns import groups_of
from pruning.techniques.technique import Technique


class SparseGPT(Technique, frozen=True):
    """Costs one pass over the data, one Gram matrix for each input, and a sweep over the columns."""

    block: Annotated[int, Meta(ge=1)] = 128
    """Columns that are swept before the columns after them are updated."""
    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean."""

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    def apply(self, weight: Tensor, observed: InputStatistics) -> None:
        """Prune `weight` [outputs, inputs] in place and update what stays."""
        W = weight.clone()
        W[:, observed[Gram].dead] = 0
        groups = groups_of(self.sparsity)
        width = max(self.block // groups.columns, 1) * groups.columns if groups else self.block

        def begin(_: slice, columns: Tensor, variance: Tensor) -> Sparse:
            return Sparse(columns, variance, self.sparsity)

        sweep(W, observed[Gram].inverse_factor(self.damping), width, begin)
        weight.copy_(W)
