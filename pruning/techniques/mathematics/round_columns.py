"""GPTQ's column rule: prunes, then rounds to the nearest code, with a scale searched for each group."""

from math import ceil
from typing import NamedTuple

from torch import Tensor

from pruning.techniques.mathematics.columns import PruneColumns
from pruning.techniques.mathematics.rounding import nearest_values, search


class Grid(NamedTuple):
    """The codes of a weight."""

    bits: int
    group: int
    """Columns that share one scale."""
    asymmetric: bool


class RoundColumns:
    """A column rule that prunes, then rounds to code * scale; each group's scale is chosen at its first column."""

    def __init__(self, grid: Grid, sparse: PruneColumns, variance: Tensor, scales: list[Tensor]) -> None:
        self._grid = grid
        self._sparse = sparse
        self._importance = 1 / variance
        self._scales = scales

    def settle(self, columns: Tensor, index: int) -> Tensor:
        """The final column `index`, pruned and rounded, [rows]."""
        kept = self._sparse.settle(columns, index)
        if index % self._grid.group == 0:
            self._scales.append(self._search(columns, slice(index, min(index + self._grid.group, len(columns)))))
        return nearest_values(kept[:, None], self._scales[-1], self._grid.bits)[:, 0]

    def _search(self, columns: Tensor, part: slice) -> Tensor:
        """The grids [rows] or [rows, 2] of the group of columns `part`."""
        if groups := self._sparse.groups:  # N:M groups inside this scale group are pruned now, and again on their turn
            after = ceil((part.start + 1) / groups.columns) * groups.columns
            if after < part.stop:
                stop = ceil(part.stop / groups.columns) * groups.columns
                self._sparse.choose(columns, slice(after, stop))
        kept = columns[part].masked_fill(self._sparse.removed[part], 0)
        grid = self._grid
        return search(kept.T.contiguous(), self._importance[part], grid.bits, asymmetric=grid.asymmetric)
