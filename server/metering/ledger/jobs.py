"""What the ledger's thread writes: jobs as values, and their application within one transaction."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from server.metering.ledger import transactions
from server.metering.ledger.records import Opening, Settlement, Usage
from server.metering.ledger.transactions import BudgetName
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
    transactions.lock_budgets(database, [name for work in works for name in _charged(work, today)])
    for index, work in enumerate(works):
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


def _charged(work: Work, today: str) -> Iterable[BudgetName]:
    """The budgets that a job reads or changes."""
    match work:
        case Opening():
            return transactions.budgets_of(work.skill, work.key_ids or (work.key_id,), today)
        case Settlement():
            return transactions.budgets_of(work.skill, (work.key_id,), work.day or today)
    return ()
