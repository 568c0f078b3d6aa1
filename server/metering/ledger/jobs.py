"""What the ledger's thread writes: jobs as values, and their application within one transaction."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from server.metering.ledger import transactions
from server.metering.ledger.records import Opening, Settlement, Usage
from server.storage.database import Database


class Counts(Struct, frozen=True):
    """The tokens of open replies so far, by request id."""

    usage: Mapping[str, Usage]


class Cursor(Struct, frozen=True):
    """The sequence number up to which the reader `name` has read."""

    name: str
    value: int


class Probe(Struct, frozen=True):
    """An empty write that tests whether the ledger is writable."""


Work = Opening | Counts | Settlement | Cursor | Probe


def apply(database: Database, instance: str, works: Sequence[Work], now: float) -> list[Any]:
    """Apply all of `works` within one transaction; returns the result of each."""
    works = works or [Probe()]
    today = transactions.day_of(now)
    results: dict[int, Any] = {}
    closed = []
    # All replicas lock budgets in the order of skills and days, so that they cannot deadlock.
    for index, work in sorted(enumerate(works), key=lambda numbered: _lock_order(numbered[1], today)):
        match work:
            case Opening():
                results[index] = admission = transactions.open_row(database, instance, work, now)
                if admission.refused:
                    closed += transactions.settle(database, Settlement(work.request_id, Usage(), "rejected"))
            case Counts():
                results[index] = transactions.count(database, work.usage)
            case Settlement():
                closed += transactions.settle(database, work)
            case Cursor():
                transactions.remember(database, work.name, work.value)
            case Probe():
                transactions.probe(database)
    transactions.number(database, closed)
    return [results.get(index) for index in range(len(works))]


def _lock_order(work: Work, today: str) -> tuple[str, str]:
    """The sort key of a job in its transaction: skill and day, so that all transactions lock budgets in one order."""
    match work:
        case Opening():
            return work.skill, today
        case Settlement():
            return work.skill, work.day
    return "", ""
