"""Gauges of budgets: what each skill and each limited API key may use, has used and has reserved."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from server.metering.ledger.records import Limits, Period, Spent

PERIODS: tuple[Period, ...] = ("day", "month")
KeyIds = tuple[str, ...]
"""The ids of API keys that share their budgets since they were rotated, the newest first."""


def skill_budgets(spent: Iterable[Spent], limits: Mapping[str, Limits]) -> Iterator[Metric]:
    """Limit (if any), used and reserved tokens of each skill in the current day and month."""
    found = by_owner(spent)
    rows = [
        (skill, period, allowed.of(period), summed(found, (skill,), period))
        for skill, allowed in limits.items()
        for period in PERIODS
    ]
    yield from _gauges("secateur_budget", "skill", rows)


def key_budgets(spent: Iterable[Spent], limits: Mapping[KeyIds, Limits]) -> Iterator[Metric]:
    """The same of each API key with budgets of its own, labelled by the newest of the keys that share them."""
    found = by_owner(spent)
    rows = [
        (ids[0], period, allowed.of(period), summed(found, ids, period))
        for ids, allowed in limits.items()
        for period in PERIODS
        if allowed.of(period) is not None
    ]
    yield from _gauges("secateur_key_budget", "key", rows)


def by_owner(spent: Iterable[Spent]) -> dict[tuple[str, Period], Spent]:
    """The rows by owner and kind of period."""
    return {(row.owner, "day" if len(row.period) == len("YYYY-MM-DD") else "month"): row for row in spent}


def summed(spent: Mapping[tuple[str, Period], Spent], owners: Iterable[str], period: Period) -> tuple[int, int]:
    """Used and reserved tokens of all `owners` together."""
    rows = [spent[owner, period] for owner in owners if (owner, period) in spent]
    return sum(row.used for row in rows), sum(row.reserved for row in rows)


def _gauges(
    name: str, owner: str, rows: Iterable[tuple[str, Period, int | None, tuple[int, int]]]
) -> Iterator[GaugeMetricFamily]:
    """Three families from rows of owner, period, limit, and used and reserved tokens."""
    whose = "an API key" if owner == "key" else f"a {owner}"
    labels = (owner, "period")
    limit = GaugeMetricFamily(f"{name}_limit_tokens", f"Tokens that {whose} may use.", labels=labels)
    used = GaugeMetricFamily(f"{name}_used_tokens", "Of these, used by closed replies.", labels=labels)
    reserved = GaugeMetricFamily(f"{name}_reserved_tokens", "Reserved by replies under way.", labels=labels)
    for who, period, most, (spent, held) in rows:
        if most is not None:
            limit.add_metric((who, period), most)
        used.add_metric((who, period), spent)
        reserved.add_metric((who, period), held)
    yield from (limit, used, reserved)
