"""Swaps: from a simple mask, exchange one kept for one removed weight as long as that lowers the layer's error.

Zimmer et al., SparseSwaps: Tractable LLM Pruning Mask Refinement at Scale, https://arxiv.org/abs/2512.10922. An
exchange stays within its row, or its N:M group, so counts do not change, and each lowers the error of its row.
"""

from typing import Annotated, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor

from pruning.patterns import groups_of, keep_matrix, keep_rows
from pruning.statistics import Gram, Statistic
from pruning.technique import Observed, Technique
from pruning.techniques.ria import relative_importance

CHUNK = 2**24
"""Pairs of weights that are compared at once; bounds the memory, whatever the layer's size."""
LEAST_GAIN = 1e-6
"""An exchange must lower the error of its row by this share, so that rounding never makes it a loss."""


class Swaps(Technique, frozen=True):
    """Updates no weight; a fraction costs rounds x outputs x inputs^2 / 4 comparisons, N:M groups far fewer."""

    start: Literal["wanda", "ria"] = "wanda"
    """The mask to start from."""
    rounds: Annotated[int, Meta(ge=0)] = 30
    """In a round each row, or each N:M group, makes its best exchange."""

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    def apply(self, weight: Tensor, observed: Observed) -> None:
        """Prune `weight` [outputs, inputs] in place."""
        gram = observed[Gram].value
        keep = self._first_mask(weight, gram.diagonal().sqrt())
        groups = groups_of(self.sparsity)
        swap(weight, keep, gram, groups.columns if groups else weight.shape[1], self.rounds)
        weight.masked_fill_(~keep, 0)

    def _first_mask(self, weight: Tensor, norm: Tensor) -> Tensor:
        """Wanda's or RIA's own mask; `norm` [columns] is the input norm up to a factor."""
        if self.start == "wanda":
            return keep_rows(weight.abs() * norm, self.sparsity)
        return keep_matrix(relative_importance(weight) * norm.sqrt(), self.sparsity)


def swap(weight: Tensor, keep: Tensor, gram: Tensor, width: int, rounds: int) -> None:
    """Improve the mask `keep` [rows, columns] in place; exchanges stay within each run of `width` columns."""
    rows = max(CHUNK // width**2, 1)
    for start in range(0, len(weight), rows):
        chunk = slice(start, start + rows)
        residual = weight[chunk].masked_fill(keep[chunk], 0) @ gram  # r = G (w o removed), [rows, columns]
        for _ in range(rounds):
            least = LEAST_GAIN * (weight[chunk].masked_fill(keep[chunk], 0) * residual).sum(dim=1)
            runs = [slice(first, first + width) for first in range(0, weight.shape[1], width)]
            if not sum(_exchange(weight[chunk], keep[chunk], residual, gram, run, least) for run in runs):
                break


def _exchange(W: Tensor, keep: Tensor, residual: Tensor, gram: Tensor, run: slice, least: Tensor) -> int:
    """Make the best exchange within `run` in each row of W [rows, columns] that gains by it; returns how many."""
    w, r, G = W[:, run], residual[:, run], gram[run, run]
    squares = w.square() * G.diagonal()
    kept, removed = _members(keep[:, run]), _members(~keep[:, run])
    if not kept.shape[1] or not removed.shape[1]:
        return 0
    infinity = torch.full_like(w, torch.inf)
    cost = (squares + 2 * w * r).where(keep[:, run], infinity).gather(1, kept)  # of removing i
    gain = (squares - 2 * w * r).where(~keep[:, run], infinity).gather(1, removed)  # of restoring j
    change = G[kept[:, :, None], removed[:, None, :]]  # [rows, kept, removed]
    change *= -2 * w.gather(1, kept)[:, :, None] * w.gather(1, removed)[:, None, :]
    change += cost[:, :, None]
    change += gain[:, None, :]
    best, pair = change.flatten(1).min(dim=1)
    moved = (-best > least).nonzero()[:, 0]
    i = kept[moved, pair[moved] // removed.shape[1]] + run.start
    j = removed[moved, pair[moved] % removed.shape[1]] + run.start
    keep[moved, i], keep[moved, j] = False, True
    residual[moved] += W[moved, i, None] * gram[i] - W[moved, j, None] * gram[j]
    return len(moved)


def _members(mask: Tensor) -> Tensor:
    """The columns where `mask` [rows, columns] is true, [rows, most of any row]; shorter rows filled with others."""
    return mask.byte().argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(dim=1).max())]
