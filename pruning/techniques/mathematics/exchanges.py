"""Exchanges a kept for a removed weight of a mask while that lowers the layer's squared output error."""

import torch
from torch import Tensor

CHUNK = 2**24
"""Pairs of weights compared at once, which bounds memory; a single row, up to inputs^2 / 4 pairs, may exceed it."""
LEAST_GAIN = 1e-6
"""Least relative gain of an exchange, in units of its row's error, so that rounding never turns it into a loss."""


def swap(weight: Tensor, keep: Tensor, gram: Tensor, width: int, rounds: int) -> None:
    """Improve the keep mask `keep` [rows, columns] in place; exchanges stay within each run of `width` columns."""
    columns = weight.shape[1]
    rows = max(4 * CHUNK // (width * columns), 1)  # each run compares at most (width / 2)^2 pairs
    for start in range(0, len(weight), rows):
        W, kept = weight[start : start + rows], keep[start : start + rows]
        residual = W.masked_fill(kept, 0) @ gram  # r = G (w o removed), [rows, columns]
        runs = [_Run(W, kept, gram, slice(first, first + width)) for first in range(0, columns, width)]
        for _ in range(rounds):
            least = LEAST_GAIN * (W.masked_fill(kept, 0) * residual).sum(dim=1)
            if not sum(run.exchange(kept, residual, least) for run in runs):
                break


class _Run:
    """The exchanges within one run of columns of W [rows, columns]; caches the term 2 w_i w_j G_ij of every pair."""

    def __init__(self, W: Tensor, keep: Tensor, gram: Tensor, run: slice) -> None:
        self._first, self._gram, self._W = run.start, gram, W
        self._w, self._G = W[:, run], gram[run, run]
        self._columns = run
        self._kept, self._removed = _members(keep[:, run]), _members(~keep[:, run])  # [rows, kept], [rows, removed]
        self._no_kept = ~keep[:, run].gather(1, self._kept)  # padding of shorter rows, never chosen
        self._no_removed = keep[:, run].gather(1, self._removed)
        self._shared = self._common(self._kept[:, :, None], self._removed[:, None, :])  # [rows, kept, removed]

    def exchange(self, keep: Tensor, residual: Tensor, least: Tensor) -> int:
        """Make each row's best exchange if it gains more than `least` [rows]; returns the number of rows changed."""
        if not self._shared.numel():
            return 0
        squares, product = self._w.square() * self._G.diagonal(), 2 * self._w * residual[:, self._columns]
        cost = (squares + product).gather(1, self._kept).masked_fill_(self._no_kept, torch.inf)  # of removing i
        gain = (squares - product).gather(1, self._removed).masked_fill_(self._no_removed, torch.inf)  # of restoring j
        change = self._shared + cost[:, :, None]
        change += gain[:, None, :]
        best, pair = change.flatten(1).min(dim=1)
        rows = (-best > least).nonzero()[:, 0]
        a, b = pair[rows] // self._removed.shape[1], pair[rows] % self._removed.shape[1]
        i, j = self._kept[rows, a], self._removed[rows, b]
        self._kept[rows, a], self._removed[rows, b] = j, i
        self._shared[rows, a] = self._common(j[:, None], self._removed[rows], rows)
        self._shared[rows, :, b] = self._common(self._kept[rows], i[:, None], rows)
        i, j = i + self._first, j + self._first
        keep[rows, i], keep[rows, j] = False, True
        residual[rows] += self._W[rows, i, None] * self._gram[i] - self._W[rows, j, None] * self._gram[j]
        return len(rows)

    def _common(self, i: Tensor, j: Tensor, rows: Tensor | None = None) -> Tensor:
        """-2 w_i w_j G_ij for columns `i` and `j`, broadcast against each other, of all rows or of `rows`."""
        w = self._w if rows is None else self._w[rows]
        w_i, w_j = (w.gather(1, index.flatten(1)).view_as(index) for index in (i, j))
        return self._G[i, j].mul_(w_i).mul_(w_j).mul_(-2)


def _members(mask: Tensor) -> Tensor:
    """The columns where `mask` [rows, columns] is true, [rows, most in any row]; shorter rows are padded."""
    return mask.byte().argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(dim=1).max())]
