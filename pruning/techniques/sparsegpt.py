"""SparseGPT: minimise the layer's squared output error column by column; later columns compensate each removal.

Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot,
https://arxiv.org/abs/2301.00774, algorithm 1. Deliberate differences from the authors' code: (1) each column block
loses exactly its fraction, not one weight more; (2) damping is raised where the Gram matrix needs it, and the log says
so; (3) a block of columns is a whole number of N:M groups; (4) damping is relative to the mean over live inputs: the
authors put ones on the diagonal of dead inputs, which ties the damping to the scale of the activations.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from pruning.techniques.mathematics.sparsity import nm_pattern
from pruning.techniques.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.passes.statistics import InputStatistics
    from pruning.techniques.mathematics.columns import PruneColumns


class SparseGPT(Technique, frozen=True):
    """Remove weights and update the rest by least squares; costs one pass, a Gram matrix per input and a sweep."""

    block: Annotated[int, Meta(ge=1)] = 128
    """Columns swept before the later columns are updated; affects the speed, and the mask of a fraction, chosen per
    block."""
    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean; 0.01 is the paper's."""

    sees_loss: ClassVar[bool] = True
    observes: ClassVar[tuple[str, ...]] = ("Gram",)

    def apply(self, weight: "Tensor", observed: "InputStatistics") -> None:
        """Prune `weight` [outputs, inputs] in place and update the remaining weights."""
        from pruning.passes.statistics import Gram
        from pruning.techniques.mathematics.columns import PruneColumns, settle_rows, sweep_columns

        W = weight.clone()
        W[:, observed[Gram].dead] = 0
        groups = nm_pattern(self.sparsity)
        width = max(self.block // groups.columns, 1) * groups.columns if groups else self.block

        def begin(_: slice, columns: "Tensor", variance: "Tensor") -> "PruneColumns":
            return PruneColumns(columns, variance, self.sparsity)

        factor = observed[Gram].inverse_factor(self.damping)
        settle_rows(W, observed.outputs, lambda rows: sweep_columns(W[rows], factor, width, begin))
        weight.copy_(W)
