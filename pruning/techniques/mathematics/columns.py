"""The sweep over the columns of a weight that SparseGPT and GPTQ share: what differs is what a column settles to.

Algorithm 1 of https://arxiv.org/abs/2301.00774 and of https://arxiv.org/abs/2210.17323.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pruning.techniques.mathematics.patterns import groups_of, keep_groups, keep_matrix


class Settle(Protocol):
    """Decides the columns of one block, in order."""

    def settle(self, columns: Tensor, index: int) -> Tensor:
        """What column `index` of `columns` [width, rows], which earlier ones have updated, stays for good: [rows]."""
        ...


Begin = Callable[[slice, Tensor, Tensor], Settle]
"""Starts a block, given its place in the weight, its columns [width, rows], and the variance U_ii^2 of each."""


def sweep(W: Tensor, U: Tensor, width: int, begin: Begin) -> None:
    """Settle the columns of `W` [rows, columns] in place; each passes its error on by `U`, the factor of H^-1.

    `width` columns are swept before the columns after them are updated.
    """
    for start in range(0, W.shape[1], width):
        block = slice(start, min(start + width, W.shape[1]))
        columns = W[:, block].T.contiguous()  # [width, rows]: a column of W is one run of memory
        within = U[block, block]
        errors = _sweep(columns, within, begin(block, columns, within.diagonal().square()))
        W[:, block] = columns.T
        W[:, block.stop :] -= errors.T @ U[block, block.stop :]


def _sweep(columns: Tensor, U: Tensor, rule: Settle) -> Tensor:
    """Settle one block [width, rows] in place; returns the errors [width, rows] it passes on."""
    errors = torch.empty_like(columns)
    for i in range(len(columns)):
        settled = rule.settle(columns, i)
        errors[i] = (columns[i] - settled) / U[i, i]
        columns[i:].addr_(U[i, i:], errors[i], alpha=-1)
        columns[i] = settled
    return errors


class Sparse:
    """Settles a column to what stays of it: for a fraction that is chosen once, for N:M at the start of each group."""

    def __init__(self, columns: Tensor, variance: Tensor, sparsity: float | str, zero: Tensor | None = None) -> None:
        self.groups = groups_of(sparsity)
        self.removed = torch.zeros_like(columns, dtype=torch.bool)
        self._variance = variance
        self._sparsity = sparsity
        self._zero = zero  # [width, rows]: these count as removed before any others
        if not self.groups:
            self.choose(columns, slice(0, len(columns)))

    def settle(self, columns: Tensor, index: int) -> Tensor:
        """Column `index` with +0 for what is removed."""
        if self.groups and index % self.groups.columns == 0:  # scored on weights that earlier columns have updated
            self.choose(columns, slice(index, index + self.groups.columns))
        return columns[index].masked_fill(self.removed[index], 0)

    def choose(self, columns: Tensor, part: slice) -> None:
        """Score some of the columns, whole groups, and choose what is removed of them."""
        score = columns[part].T.square() / self._variance[part]
        if self._zero is not None:
            score.masked_fill_(self._zero[part].T, -1)
        keep = keep_groups(score, self.groups) if self.groups else keep_matrix(score, self._sparsity)
        self.removed[part] = ~keep.T if self._zero is None else ~keep.T | self._zero[part]
