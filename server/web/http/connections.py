"""Counts the connections that the server closed, by what it waited for from the client, and warns at the limit."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

Debt = Literal["head", "body", "read"]
"""What the server waits for: a request's head, its body, or the client reading the response."""
DEBTS: tuple[Debt, ...] = get_args(Debt)
logger = logging.getLogger(__name__)


class ClosedConnections(Collector):
    """The counter `secateur_connections_closed`, over all listeners, in memory since the start."""

    def __init__(self) -> None:
        known: list[tuple[str, str]] = [(owed, cause) for owed in DEBTS for cause in ("deadline", "evicted")]
        self._counts = Counter(dict.fromkeys([*known, ("nothing", "refused")], 0))

    def late(self, owed: Debt) -> None:
        """Count a connection closed at a deadline."""
        self._counts[owed, "deadline"] += 1

    def evicted(self, owed: Debt, limit: int) -> None:
        """Count a slow connection closed to make room for a new one, with all `limit` in use."""
        self._counts[owed, "evicted"] += 1
        self._warn(limit)

    def refused(self, limit: int) -> None:
        """Count a connection refused because all `limit` are in use and none keeps the server waiting."""
        self._counts["nothing", "refused"] += 1
        self._warn(limit)

    def describe(self) -> Iterable[Metric]:
        """The family without samples."""
        return [_family()]

    def collect(self) -> Iterator[Metric]:
        """Every count, zeros included, so that rates include the first."""
        family = _family()
        for labels, count in self._counts.copy().items():
            family.add_metric(labels, count)
        yield family

    def _warn(self, limit: int) -> None:
        shown = [*(self._counts[owed, "evicted"] for owed in DEBTS), self._counts["nothing", "refused"]]
        logger.warning(
            "All %d connections are taken: since the start %d that owed a head, %d a body and %d reading were closed "
            "for new ones, and %d new ones were refused",
            limit,
            *shown,
        )


def _family() -> CounterMetricFamily:
    return CounterMetricFamily(
        "secateur_connections_closed",
        "Connections that the server closed, by what the peer owed (head, body, read) and why: a deadline, or eviction "
        "or refusal because all connections were in use.",
        labels=("owed", "cause"),
    )
