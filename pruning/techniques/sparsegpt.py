"""SparseGPT: remove column by column what costs least, and let the columns that follow make up for it.

Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot,
https://arxiv.org/abs/2301.00774. Deliberate differences from its code: (1) exactly the fraction of each column block
is removed, not one weight more; (2) damping grows where it must, and the log says so; (3) a block of columns is a
whole number of N:M groups.
"""

from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from pruning.patterns import Groups, groups_of, keep_groups, keep_matrix
from pruning.statistics import Gram, Statistic
from pruning.technique import Observed, Technique


class SparseGPT(Technique, frozen=True):
    """Costs one pass over the data, one Gram matrix for each input, and a sweep over the columns."""

    block: Annotated[int, Meta(ge=1)] = 128
    """Columns that are swept before the columns after them are updated."""
    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean."""

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    def apply(self, weight: Tensor, observed: Observed) -> None:
        """Prune `weight` [outputs, inputs] in place and update what stays."""
        U = observed[Gram].inverse_factor(self.damping)
        W = weight.clone()
        W[:, observed[Gram].dead] = 0
        groups = groups_of(self.sparsity)
        width = max(self.block // groups.columns, 1) * groups.columns if groups else self.block
        for start in range(0, W.shape[1], width):
            stop = min(start + width, W.shape[1])
            errors = self._sweep(W[:, start:stop], U[start:stop, start:stop], groups)
            W[:, stop:] -= errors.T @ U[start:stop, stop:]
        weight.copy_(W)

    def _sweep(self, W: Tensor, U: Tensor, groups: Groups | None) -> Tensor:
        """Prune one block of columns `W` [rows, width] in place; returns the errors [width, rows] it passes on."""
        columns = W.T.contiguous()  # [width, rows]: a column of W is one run of memory
        scale = U.diagonal().square()
        keep = torch.ones_like(columns, dtype=torch.bool)
        if groups is None:
            keep = keep_matrix(columns.T.square() / scale, self.sparsity).T.contiguous()
        errors = torch.empty_like(columns)
        for i in range(len(columns)):
            if groups and i % groups.columns == 0:  # scored on weights that earlier columns have updated
                group = slice(i, i + groups.columns)
                keep[group] = keep_groups(columns[group].T.square() / scale[group], groups).T
            errors[i] = columns[i].masked_fill(keep[i], 0) / U[i, i]
            columns[i:].addr_(U[i, i:], errors[i], alpha=-1)
        W.copy_(columns.masked_fill_(~keep, 0).T)
        return errors
