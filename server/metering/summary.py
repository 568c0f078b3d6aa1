"""The figures of the admin page, read in one snapshot: use, budgets, outcomes and latencies, no text."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from math import ceil
from types import MappingProxyType

from msgspec import Struct

from server.metering.budgets import PERIODS, KeyIds, by_owner, summed
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Limits, Period, Spent
from server.metering.ledger.transactions import day_of
from server.metering.ledger.transactions import spent as spent_of
from server.metering.usage import Span, grouped
from server.storage.database import Database

DAYS = 30
WEEK = 7
LATEST = 1000
QUANTILES = (0.5, 0.95, 0.99)
NO_KEYS: Mapping[KeyIds, Limits] = MappingProxyType({})


class Budget(Struct, frozen=True):
    """A skill's tokens in the current day or month; without limit if `limit` is None."""

    skill: str
    period: Period
    used: int
    reserved: int
    limit: int | None


class KeyBudget(Struct, frozen=True):
    """An API key's tokens in the current day or month, with those of the keys that it replaced."""

    key: str
    period: Period
    used: int
    reserved: int
    limit: int


class Use(Struct, frozen=True):
    """Prompt and output tokens of one skill on one day, summed."""

    day: str
    skill: str
    tokens: int


class SkillUse(Struct, frozen=True):
    """A skill's requests, tokens and outcomes in the last seven days."""

    skill: str
    requests: int
    input: int
    cached: int
    output: int
    outcomes: dict[str, int]


class Latency(Struct, frozen=True):
    """Seconds of the latest replies: the quantiles 0.5, 0.95 and 0.99, and all values in ascending order."""

    quantiles: tuple[float, ...]
    values: tuple[float, ...]


class Summary(Struct, frozen=True):
    """All figures; days are in UTC and end with `today`."""

    today: str
    days: tuple[str, ...]
    use: Sequence[Use]
    budgets: Sequence[Budget]
    key_budgets: Sequence[KeyBudget]
    skills: Sequence[SkillUse]
    first_token: Latency
    duration: Latency
    total: int
    """Tokens in the whole ledger."""


def summarise(
    ledger: Ledger, limits: Mapping[str, Limits], now: float, key_limits: Mapping[KeyIds, Limits] = NO_KEYS
) -> Summary:
    """Read the summary from the ledger; `now` in seconds since 1970. Raises StorageError."""
    today = day_of(now)
    days = tuple(str(date.fromisoformat(today) - timedelta(days=back)) for back in reversed(range(DAYS)))
    with ledger.snapshot() as database:
        spent = [Spent(*row) for row in database.execute(SPENT, (days[0], today[:7]))]
        by_key = spent_of(database, "key", today)
        week = grouped(database, ("skill", "outcome"), Span(days[-WEEK], today))
        first, duration = (_latency(database, column) for column in ("first_token_seconds", "duration_seconds"))
        [(total,)] = database.execute("SELECT coalesce(sum(used), 0) FROM budgets WHERE length(period) = 7")
    return Summary(
        today,
        days,
        [Use(row.period, row.owner, row.used) for row in spent if row.period in days and row.used],
        _budgets(limits, {(row.owner, row.period): row for row in spent}, today),
        _key_budgets(key_limits, by_key),
        _skills(week),
        first,
        duration,
        int(total),
    )


SPENT = """
SELECT skill, period, used, reserved FROM budgets WHERE (length(period) = 10 AND period >= ?) OR period = ?
ORDER BY period, skill
"""


def _budgets(limits: Mapping[str, Limits], spent: Mapping[tuple[str, str], Spent], today: str) -> list[Budget]:
    names: tuple[tuple[Period, str], ...] = (("day", today), ("month", today[:7]))
    found = []
    for skill, allowed in limits.items():
        for period, name in names:
            row = spent.get((skill, name), Spent(skill, name, 0, 0))
            found.append(Budget(skill, period, row.used, row.reserved, allowed.of(period)))
    return found


def _key_budgets(limits: Mapping[KeyIds, Limits], spent: Sequence[Spent]) -> list[KeyBudget]:
    found = by_owner(spent)
    return [
        KeyBudget(ids[0], period, *summed(found, ids, period), limit)
        for ids, allowed in limits.items()
        for period in PERIODS
        if (limit := allowed.of(period)) is not None
    ]


def _skills(rows: Sequence[tuple[str, str, int, int, int, int]] | Sequence[tuple[object, ...]]) -> list[SkillUse]:
    """The skills by tokens, descending."""
    sums: dict[str, list[int]] = {}
    outcomes: dict[str, dict[str, int]] = {}
    for skill, outcome, *counts in rows:
        name = str(skill)
        sums[name] = [a + int(str(b)) for a, b in zip(sums.get(name, [0, 0, 0, 0]), counts, strict=True)]
        outcomes.setdefault(name, {})[str(outcome)] = int(str(counts[0]))
    found = [SkillUse(name, n, read, cached, new, outcomes[name]) for name, (n, read, cached, new) in sums.items()]
    return sorted(found, key=lambda use: (-use.input - use.output, use.skill))


def _latency(database: Database, column: str) -> Latency:
    statement = (
        f"SELECT {column} FROM requests WHERE sequence IS NOT NULL AND {column} IS NOT NULL AND output_tokens > 0 "
        f"AND state = 'final' ORDER BY sequence DESC LIMIT {LATEST}"
    )
    values = sorted(round(float(value), 4) for (value,) in database.execute(statement))
    return Latency(tuple(_quantile(values, q) for q in QUANTILES) if values else (), tuple(values))


def _quantile(values: Sequence[float], q: float) -> float:
    """The `q`-quantile of ascending `values`, by nearest rank."""
    return values[max(0, ceil(q * len(values)) - 1)]
