"""GPTQ: round column by column, minimising the layer's squared output error; with a sparsity, prune in the same sweep.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
https://arxiv.org/abs/2210.17323, algorithm 1; with pruning, section 3.5 of SparseGPT, https://arxiv.org/abs/2301.00774.
Deliberate differences from the authors' code: (1) codes are symmetric by default, so zero stays zero; (2) each group's
scale is searched, weighted by the error that remains after later columns compensate; (3) columns keep their order (no
act-order).
"""

from math import lcm
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta

from pruning.techniques.mathematics.sparsity import nm_pattern
from pruning.techniques.technique import Technique
from server.artifact.checkpoint.layouts import Group, Scheme, refuse_scheme

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.passes.statistics import InputStatistics
    from pruning.techniques.mathematics.round_columns import RoundColumns


class GPTQ(Technique, frozen=True):
    """Quantise and optionally prune one weight; costs SparseGPT and a search for scales; existing zeros stay zero."""

    sparsity: (
        Annotated[float, Meta(ge=0, lt=1, description="the fraction of weights to remove")]
        | Annotated[str, Meta(description="N:M keeps N of every M input columns")]
    ) = 0.0
    """Fraction to remove, or N:M; 0 removes nothing. Existing zeros count as removed."""
    bits: Literal[2, 3, 4, 5, 6, 8] = 4
    """Bits of a code; 2 are stored in 3."""
    group: Group = 64
    """Input columns of a row that share one scale; smaller groups are more accurate and larger on disk."""
    scheme: Scheme = "symmetric"
    """"symmetric": codes from -2^(bits-1) to 2^(bits-1) - 1, whose zero stays zero. "asymmetric": codes from 0, and a
    minimum beside each scale; more accurate, 16 bits more for each group, at most 6 bits, not for pruned weights."""
    block: Annotated[int, Meta(ge=1)] = 128
    """Columns swept before the later columns are updated, rounded to whole groups; affects the speed, and the mask of a
    fraction, chosen per block."""
    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean; 0.01 is the paper's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_scheme(self.scheme, self.bits)
        if self.scheme == "asymmetric" and self.sparsity != 0:
            raise ValueError('asymmetric codes have no zero for pruned weights: use scheme = "symmetric"')

    sees_loss: ClassVar[bool] = True
    observes: ClassVar[tuple[str, ...]] = ("Gram",)

    def apply(self, weight: "Tensor", observed: "InputStatistics") -> "Tensor":
        """Quantise `weight` [outputs, inputs] in place; returns the grids, float16 [outputs, groups(, 2)]."""
        import torch

        from pruning.passes.statistics import Gram
        from pruning.techniques.mathematics.columns import PruneColumns, settle_rows, sweep_columns
        from pruning.techniques.mathematics.round_columns import Grid, RoundColumns

        W = weight.clone()
        W[:, observed[Gram].dead] = 0
        zero = (W == 0).T
        groups = nm_pattern(self.sparsity)
        unit = lcm(self.group, groups.columns if groups else 1)
        width = max(self.block // unit, 1) * unit
        factor = observed[Gram].inverse_factor(self.damping)
        grid = Grid(self.bits, self.group, self.scheme == "asymmetric")
        scales: list[Tensor] = []

        def settle(rows: slice) -> None:
            own: list[Tensor] = []

            def begin(block: slice, columns: "Tensor", variance: "Tensor") -> "RoundColumns":
                sparse = PruneColumns(columns, variance, self.sparsity, zero[block, rows])
                return RoundColumns(grid, sparse, variance, own)

            sweep_columns(W[rows], factor, width, begin)
            scales.append(torch.stack(own, dim=1))

        settle_rows(W, observed.outputs, settle)
        weight.copy_(W)
        return torch.cat(scales).half()
