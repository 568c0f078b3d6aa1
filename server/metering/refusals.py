"""Requests that were refused before anything was generated, by skill and reason, in memory since the start.

They have no row in the ledger, but for those that a budget or a full queue refused.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import product

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from server.errors import REASONS, Reason

NOBODY = "-"  # no skill can be called so


class Refusals(Collector):
    """Counts them; the labels are the configured skills, `-` where none is known, and REASONS."""

    def __init__(self, skills: Callable[[], Iterable[str]]) -> None:
        self._skills = skills
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, skill: str, reason: Reason) -> None:
        """One more; `skill` is a configured one's name, or empty."""
        self._counts[skill or NOBODY, reason] += 1

    def describe(self) -> Iterable[Metric]:
        """The family without samples."""
        return [_family()]

    def collect(self) -> Iterator[Metric]:
        """Each reason of each skill, zeros included, so that rates see the first."""
        family = _family()
        counts: dict[tuple[str, str], int] = dict.fromkeys(product((*self._skills(), NOBODY), REASONS), 0)
        counts.update(self._counts)
        for labels, value in counts.items():
            family.add_metric(labels, value)
        yield family


def _family() -> CounterMetricFamily:
    return CounterMetricFamily(
        "secateur_rejected", "Requests refused; `-` is no known skill.", labels=("skill", "reason")
    )
