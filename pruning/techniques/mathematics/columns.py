"""The column sweep of SparseGPT and GPTQ: each column's error is compensated by the columns after it.

Algorithm 1 of https://arxiv.org/abs/2301.00774 and of https://arxiv.org/abs/2210.17323; a `ColumnRule` says what a
column becomes.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pruning.passes.statistics import inverse_factor
from pruning.techniques.mathematics.patterns import keep_matrix, keep_nm
from pruning.techniques.mathematics.sparsity import nm_pattern

ROWS = 64
"""Outputs settled at once where the objective is the loss."""
FISHER_DAMPING = 0.1
"""Added to the diagonal of a Fisher matrix, in units of its mean: most directions are noisy after a few sequences."""


class ColumnRule(Protocol):
    """Decides the final values of the columns of one block, in order."""

    def settle(self, columns: Tensor, index: int) -> Tensor:
        """The final values [rows] of column `index` of `columns` [width, rows], already updated by earlier columns."""
        ...


StartBlock = Callable[[slice, Tensor, Tensor], ColumnRule]
"""Makes the rule of a block from its slice of the weight, its columns [width, rows], and their variances U_ii^2
[width]."""


def sweep_columns(W: Tensor, U: Tensor, width: int, begin: StartBlock) -> None:
    """Settle the columns of `W` [rows, columns] in place; errors propagate by `U`, the upper Cholesky factor of H^-1.

    `width` columns are swept before the later columns are updated.
    """
    for start in range(0, W.shape[1], width):
        block = slice(start, min(start + width, W.shape[1]))
        columns = W[:, block].T.contiguous()  # [width, rows]: a column of W is contiguous
        within = U[block, block]
        errors = _sweep(columns, within, begin(block, columns, within.diagonal().square()))
        W[:, block] = columns.T
        W[:, block.stop :] -= errors.T @ U[block, block.stop :]


def settle_rows(W: Tensor, fisher: Tensor | None, settle: Callable[[slice], None]) -> None:
    """Settle the rows of `W` [outputs, inputs] in place, by `settle` on one slice of rows after another.

    With the outputs' Fisher matrix F [outputs, outputs] the rows after a slice make up for its error E: they move to
    the least of tr(F E H E^T), which does not depend on H. Without F rows are independent and settled at once. Tseng et
    al., YAQA, https://arxiv.org/abs/2505.22988, with slices of rows where the paper has single weights.
    """
    if fisher is None:
        settle(slice(0, len(W)))
        return
    factor = damped_inverse_factor(fisher)
    for start in range(0, len(W), ROWS):
        rows, rest = slice(start, start + ROWS), slice(start + ROWS, None)
        wanted = W[rows].clone()
        settle(rows)
        error = torch.linalg.solve_triangular(factor[rows, rows].T, wanted - W[rows], upper=False)
        W[rest] -= factor[rows, rest].T @ error


def damped_inverse_factor(fisher: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of a Fisher matrix [outputs, outputs] that is damped to be regular."""
    damping = FISHER_DAMPING
    while True:
        damped = fisher.clone()
        damped.diagonal().add_(damping * fisher.diagonal().mean().clamp_min(torch.finfo(fisher.dtype).tiny))
        if (factor := inverse_factor(damped)) is not None:
            return factor
        damping *= 10


def _sweep(columns: Tensor, U: Tensor, rule: ColumnRule) -> Tensor:
    """Settle one block [width, rows] in place; returns the errors [width, rows] to propagate to later blocks."""
    errors = torch.empty_like(columns)
    for i in range(len(columns)):
        settled = rule.settle(columns, i)
        errors[i] = (columns[i] - settled) / U[i, i]
        columns[i:].addr_(U[i, i:], errors[i], alpha=-1)
        columns[i] = settled
    return errors


class PruneColumns:
    """A column rule that prunes: a fraction's mask is chosen once a block, an N:M mask at the start of each group."""

    def __init__(self, columns: Tensor, variance: Tensor, sparsity: float | str, zero: Tensor | None = None) -> None:
        self.groups = nm_pattern(sparsity)
        self.removed = torch.zeros_like(columns, dtype=torch.bool)
        self._variance = variance
        self._sparsity = sparsity
        self._zero = zero  # [width, rows]: counted as removed before any other
        if not self.groups:
            self.choose(columns, slice(0, len(columns)))

    def settle(self, columns: Tensor, index: int) -> Tensor:
        """Column `index` [rows] with +0 where it is pruned."""
        if self.groups and index % self.groups.columns == 0:  # scored after updates from earlier columns
            self.choose(columns, slice(index, index + self.groups.columns))
        return columns[index].masked_fill(self.removed[index], 0)

    def choose(self, columns: Tensor, part: slice) -> None:
        """Score the columns of `part`, a whole number of groups, and choose the weights to remove."""
        score = columns[part].T.square() / self._variance[part]
        if self._zero is not None:
            score.masked_fill_(self._zero[part].T, -1)
        keep = keep_nm(score, self.groups) if self.groups else keep_matrix(score, self._sparsity)
        self.removed[part] = ~keep.T if self._zero is None else ~keep.T | self._zero[part]
