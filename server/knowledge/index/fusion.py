"""Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): sum of weight / (K + rank) over the rankings."""

from collections import defaultdict
from collections.abc import Sequence

K = 60


def fused(rankings: Sequence[tuple[float, Sequence[int]]]) -> dict[int, float]:
    """The fused score of every id in `rankings`, each a weight and ids with the best first."""
    scores: dict[int, float] = defaultdict(float)
    for weight, ranking in rankings:
        for rank, id in enumerate(ranking, 1):
            scores[id] += weight / (K + rank)
    return scores
