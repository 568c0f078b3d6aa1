"""Counts refused requests by skill and reason, in memory since the start.

Most have no row in the ledger; a budget or a full queue refuses after the row was opened.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Literal, get_args

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from server.errors import REASONS, Reason

NO_SKILL = "-"  # not a valid name of a skill


class Refusals(Collector):
    """The counter `secateur_rejected`, labelled by configured skill, or `-` if none is known, and by reason."""

    def __init__(self, skills: Callable[[], Iterable[str]]) -> None:
        self._skills = skills
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, skill: str, reason: Reason) -> None:
        """Count a refusal; `skill` is a configured skill's name, or empty."""
        self._counts[skill or NO_SKILL, reason] += 1

    def describe(self) -> Iterable[Metric]:
        """The family without samples."""
        return [_family()]

    def collect(self) -> Iterator[Metric]:
        """Every skill and reason, zeros included, so that rates include the first refusal."""
        family = _family()
        counts: dict[tuple[str, str], int] = dict.fromkeys(product((*self._skills(), NO_SKILL), REASONS), 0)
        counts.update(self._counts)
        for labels, value in counts.items():
            family.add_metric(labels, value)
        yield family


def _family() -> CounterMetricFamily:
    return CounterMetricFamily(
        "secateur_rejected", "Requests refused; `-` is no known skill.", labels=("skill", "reason")
    )


ListenerName = Literal["admin", "public"]


class KeyFailures(Collector):
    """The counter `secateur_auth_failures`: wrong or expired keys by listener, in memory since the start."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter(dict.fromkeys(get_args(ListenerName), 0))

    def count(self, listener: ListenerName) -> None:
        """Count one wrong key."""
        self._counts[listener] += 1

    def describe(self) -> Iterable[Metric]:
        """The family without samples."""
        return [_failures()]

    def collect(self) -> Iterator[Metric]:
        """Both listeners, zeros included."""
        family = _failures()
        for listener, value in self._counts.items():
            family.add_metric((listener,), value)
        yield family


def _failures() -> CounterMetricFamily:
    return CounterMetricFamily("secateur_auth_failures", "Wrong or expired keys.", labels=("listener",))
