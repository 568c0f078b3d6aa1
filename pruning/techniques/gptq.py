"""GPTQ: round column by column, and let the columns that follow make up for it; with a sparsity, prune as well.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
https://arxiv.org/abs/2210.17323; with pruning, section 3.5 of SparseGPT, https://arxiv.org/abs/2301.00774. Deliberate
differences from their code: (1) codes are symmetric, so that zero stays zero; (2) a group's scale is searched, weighted
by what an error costs once later columns have made up for it; (3) columns are swept in their own order (no act-order).
"""

from math import ceil, lcm
from typing import Annotated, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor

from pruning.passes.statistics import Gram, InputStatistics, Statistic
from pruning.techniques.mathematics.columns import Sparse, sweep
from pruning.techniques.mathematics.patterns import groups_of
from pruning.techniques.mathematics.rounding import nearest, search_scale
from pruning.techniques.technique import Technique
from server.artifact.checkpoint.layouts import Group


class GPTQ(Technique, frozen=True):
    """Costs what SparseGPT costs and a search for the scales; zeros of the weight that it is given stay zero."""

    sparsity: (
        Annotated[float, Meta(ge=0, lt=1, description="the fraction of weights to remove")]
        | Annotated[str, Meta(description="N:M keeps N of every M input columns")]
    ) = 0.0
    """0 removes nothing; zeros that are there count towards what is to be removed."""
    bits: Literal[2, 3, 4, 8] = 4
    """Codes of 2 and 3 bits are for comparison: they are stored in 4."""
    group: Group = 64
    """Input columns that share one scale in each row."""
    scheme: Literal["symmetric"] = "symmetric"
    block: Annotated[int, Meta(ge=1)] = 128
    """Columns that are swept before the columns after them are updated."""
    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean."""

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    def apply(self, weight: Tensor, observed: InputStatistics) -> Tensor:
        """Quantise `weight` [outputs, inputs] in place; returns the scales [outputs, groups], float16."""
        W = weight.clone()
        W[:, observed[Gram].dead] = 0
        zero = (W == 0).T
        groups = groups_of(self.sparsity)
        unit = lcm(self.group, groups.columns if groups else 1)
        scales: list[Tensor] = []

        def begin(block: slice, columns: Tensor, variance: Tensor) -> "_Rounded":
            return _Rounded(self, Sparse(columns, variance, self.sparsity, zero[block]), variance, scales)

        sweep(W, observed[Gram].inverse_factor(self.damping), max(self.block // unit, 1) * unit, begin)
        weight.copy_(W)
        return torch.stack(scales, dim=1).half()


class _Rounded:
    """Settles a column to code * scale of what stays of it; the scale is chosen at the start of each group."""

    def __init__(self, options: GPTQ, sparse: Sparse, variance: Tensor, scales: list[Tensor]) -> None:
        self._options = options
        self._sparse = sparse
        self._importance = 1 / variance
        self._scales = scales

    def settle(self, columns: Tensor, index: int) -> Tensor:
        """Column `index`, pruned and rounded."""
        kept = self._sparse.settle(columns, index)
        if index % self._options.group == 0:
            self._scales.append(self._search(columns, slice(index, min(index + self._options.group, len(columns)))))
        scale = self._scales[-1]
        return nearest(kept, scale, self._options.bits) * scale

    def _search(self, columns: Tensor, part: slice) -> Tensor:
        """The scales [rows] for the columns in `part`."""
        if groups := self._sparse.groups:  # what is removed of later groups is foreseen here, and chosen again there
            after = ceil((part.start + 1) / groups.columns) * groups.columns
            if after < part.stop:
                stop = ceil(part.stop / groups.columns) * groups.columns
                self._sparse.choose(columns, slice(after, stop))
        kept = columns[part].masked_fill(self._sparse.removed[part], 0)
        return search_scale(kept.T.contiguous(), self._importance[part], self._options.bits)
