"""Keep masks from scores: a fraction of each row or of the matrix, or N of every M columns.

Counts are exact; of equal scores the lower index is removed first, as in Wanda's stable sort.
"""

from math import ceil

import torch
from torch import Tensor

from pruning.techniques.mathematics.sparsity import NMPattern, nm_pattern


def keep_rows(score: Tensor, sparsity: float | str) -> Tensor:
    """The keep mask for `score` [rows, columns]; a fraction is removed from each row separately."""
    groups = nm_pattern(sparsity)
    if groups:
        return keep_nm(score, groups)
    return drop_lowest(score, int(score.shape[1] * float(sparsity)))


def keep_matrix(score: Tensor, sparsity: float | str) -> Tensor:
    """The keep mask for `score` [rows, columns]; a fraction is removed from the matrix as a whole."""
    groups = nm_pattern(sparsity)
    if groups:
        return keep_nm(score, groups)
    return drop_lowest(score.flatten(), int(score.numel() * float(sparsity))).view_as(score)


def keep_nm(score: Tensor, groups: NMPattern) -> Tensor:
    """The keep mask of the highest scores in each N:M group; a shorter last group keeps its share, rounded up."""
    rows, columns = score.shape
    whole = columns - columns % groups.columns
    parts = []
    if whole:
        grouped = score[:, :whole].reshape(rows, -1, groups.columns)
        parts.append(drop_lowest(grouped, groups.columns - groups.keep).view(rows, whole))
    if rest := columns - whole:
        parts.append(drop_lowest(score[:, whole:], rest - ceil(rest * groups.keep / groups.columns)))
    return torch.cat(parts, dim=1)


def drop_lowest(score: Tensor, count: int) -> Tensor:
    """A mask that is False at exactly the `count` lowest scores along the last dimension."""
    if not count:
        return torch.ones_like(score, dtype=torch.bool)
    keep = score > score.kthvalue(count, dim=-1, keepdim=True).values
    if int((~keep).sum()) * score.shape[-1] == score.numel() * count:
        return keep  # no ties at the threshold, so no stable sort is needed
    lowest = score.argsort(dim=-1, stable=True)[..., :count]
    return torch.ones_like(score, dtype=torch.bool).scatter_(-1, lowest, False)
