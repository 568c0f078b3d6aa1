"""Joins the rankings by words and by vectors: by scores, or by reciprocal rank.

By scores (Bruch, Gai and Ingber 2023, arXiv:2210.11934): cosine + COVERAGE * coverage. By rank (Cormack, Clarke and
Buettcher 2009): the sum of 1 / (K + rank). docs/results/log.md has what both find.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

K = 60
COVERAGE = 0.2
"""What a passage that covers all words of a question gains over one that covers none."""


def by_rank(rankings: Sequence[Sequence[int]]) -> dict[int, float]:
    """The joint score of every id in `rankings`, each with the best id first."""
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, id in enumerate(ranking, 1):
            scores[id] += 1 / (K + rank)
    return scores


def by_score(cosine: Mapping[int, float], coverage: Mapping[int, float]) -> dict[int, float]:
    """The joint score of every id that has a cosine."""
    return {id: value + COVERAGE * coverage.get(id, 0.0) for id, value in cosine.items()}
