"""The steps of the ledger's transactions: open rows within budgets, count, settle, recover.

Every function here must be called within a transaction, which the caller commits.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil

from server.metering.ledger.records import (
    KINDS,
    Admission,
    Holder,
    Known,
    Limits,
    Opening,
    Period,
    Refusal,
    Settlement,
    Spent,
    Totals,
    Usage,
)
from server.storage.database import Database

BudgetName = tuple[Holder, str, str]
"""Holder, the skill's name or the key's id, and the day or month."""
BUDGETS: dict[Holder, tuple[str, str]] = {"key": ("key_budgets", "key_id"), "skill": ("budgets", "skill")}
"""The table of each kind of budget, and its column of owners."""
OPEN = """
INSERT INTO requests (request_id, instance, skill, revision, model, key_id, idempotency, state, opened_at, day,
  reserved_tokens, knowledge_tokens, retrieval_seconds, usage_from)
VALUES (?, ?, ?, ?, ?, ?, ?, 'open', ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING request_id
"""
KNOWN = """
SELECT request_id, outcome, prompt_tokens, cached_tokens, output_tokens FROM requests WHERE idempotency = ?
"""
COUNT = """
UPDATE requests SET prompt_tokens = ?, cached_tokens = ?, output_tokens = ? WHERE request_id = ? AND state = 'open'
"""
SETTLE = """
UPDATE requests SET state = ?, outcome = ?, closed_at = opened_at + ?, prompt_tokens = ?, cached_tokens = ?,
  output_tokens = ?, duration_seconds = ?, first_token_seconds = ?, usage_from = coalesce(?, usage_from),
  idempotency = CASE WHEN ? = 1 THEN NULL ELSE idempotency END
WHERE request_id = ? AND state = 'open' RETURNING instance, skill, model, key_id, day, revision, usage_from,
  reserved_tokens
"""
ADD_TOKENS = """
INSERT INTO tokens VALUES (?, ?, ?, ?, ?)
ON CONFLICT (instance, skill, model, type) DO UPDATE SET value = tokens.value + excluded.value
"""
ADD_OUTCOME = """
INSERT INTO outcomes VALUES (?, ?, ?, ?, 1)
ON CONFLICT (instance, skill, model, outcome) DO UPDATE SET value = outcomes.value + 1
"""
ADD_DAILY = """
INSERT INTO daily (day, instance, skill, revision, model, key_id, outcome, usage_from, requests, prompt_tokens,
  cached_tokens, output_tokens)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)
ON CONFLICT (day, instance, skill, revision, model, key_id, outcome, usage_from)
DO UPDATE SET requests = daily.requests + 1,
  prompt_tokens = daily.prompt_tokens + excluded.prompt_tokens,
  cached_tokens = daily.cached_tokens + excluded.cached_tokens,
  output_tokens = daily.output_tokens + excluded.output_tokens
"""
ADD_BUDGET: dict[Holder, str] = {
    holder: f"""
INSERT INTO {table} VALUES (?, ?, ?, ?) ON CONFLICT ({owner}, period)
DO UPDATE SET used = {table}.used + excluded.used, reserved = {table}.reserved + excluded.reserved
"""
    for holder, (table, owner) in BUDGETS.items()
}
REMEMBER = """
INSERT INTO cursors VALUES (?, ?) ON CONFLICT (name)
DO UPDATE SET value = CASE WHEN excluded.value > cursors.value THEN excluded.value ELSE cursors.value END
"""
PROBE = "INSERT INTO cursors VALUES ('probe', 1) ON CONFLICT (name) DO UPDATE SET value = cursors.value + 1"
SPENT: dict[Holder, str] = {
    holder: f"SELECT used + reserved FROM {table} WHERE {owner} = ? AND period = ?"
    for holder, (table, owner) in BUDGETS.items()
}
IS_OPEN = "SELECT 1 FROM requests WHERE request_id = ? AND state = 'open'"
OPEN_ROWS = """
SELECT skill, day, request_id, key_id, opened_at, prompt_tokens, cached_tokens, output_tokens FROM requests
WHERE state = 'open' AND instance = ?
"""


def day_of(moment: float) -> str:
    """The day in UTC of a time in seconds since 1970."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")


def until_next(period: Period, moment: float) -> int:
    """Whole seconds from `moment` until the next day or month begins, in UTC; at least 1."""
    now = datetime.fromtimestamp(moment, UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    tomorrow, month = midnight + timedelta(days=1), (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    start = tomorrow if period == "day" else month
    return max(1, ceil((start - now).total_seconds()))


def periods(day: str) -> tuple[tuple[Period, str], ...]:
    """The budget periods of a day."""
    return ("month", day[:7]), ("day", day)


def budgets_of(skill: str, keys: Iterable[str], day: str) -> list[BudgetName]:
    """The budgets that a reply of this day is charged to; an empty name has none."""
    owners: list[tuple[Holder, str]] = [("skill", skill), *(("key", key) for key in keys)]
    return [(holder, owner, name) for holder, owner in owners if owner for _, name in periods(day)]


def lock_budgets(database: Database, names: Iterable[BudgetName]) -> None:
    """Create these budgets and lock them until the commit; call it first.

    All replicas lock in one order, so that they cannot deadlock. SQLite has one writer and needs no locks.
    """
    if not database.shared:
        return
    _charge(database, sorted(set(names)), 0, 0)


def open_row(database: Database, instance: str, opening: Opening, now: float) -> Admission:
    """Open a row and reserve its prompt and as many of the wanted tokens as all budgets have left.

    If a budget has fewer than `least` left, the admission is refused and the caller must settle the row as `rejected`.
    """
    day = day_of(now)
    if opening.idempotency is not None and (known := _known(database, opening.idempotency)):
        return Admission(0, day, known=known)
    granted, refused = _room(database, opening, day)
    reserved = 0 if refused else opening.prompt + granted
    marks = (opening.revision, opening.model, opening.key_id, None if refused else opening.idempotency)
    found = (opening.knowledge_tokens, opening.retrieval, opening.usage_from)
    values = (opening.request_id, instance, opening.skill, *marks, now, day, reserved, *found)
    if not database.execute(OPEN, values):  # another replica opened the same Idempotency-Key meanwhile
        return Admission(0, day, known=_known(database, opening.idempotency or ""))
    _charge(database, budgets_of(opening.skill, (opening.key_id,), day), 0, reserved)
    return Admission(granted, day, refused)


def _charge(database: Database, names: Iterable[BudgetName], used: int, reserved: int) -> None:
    """Add to what these budgets have used and reserved."""
    charged = list(names)
    for holder, statement in ADD_BUDGET.items():
        rows = [(owner, period, used, reserved) for which, owner, period in charged if which == holder]
        if rows:
            database.execute_many(statement, rows)


def spent(database: Database, holder: Holder, day: str) -> list[Spent]:
    """Tokens used and reserved by each skill, or key, in the month and day of `day`."""
    table, owner = BUDGETS[holder]
    statement = f"SELECT {owner}, period, used, reserved FROM {table} WHERE period IN (?, ?) ORDER BY {owner}, period"
    return [Spent(*row) for row in database.execute(statement, [name for _, name in periods(day)])]


def totals(database: Database, instance: str) -> Totals:
    """The sums over all closed rows of `instance`."""
    columns = "SELECT skill, model, {}, value FROM {} WHERE instance = ?"
    tokens = database.execute(columns.format("type", "tokens"), (instance,))
    requests = database.execute(columns.format("outcome", "outcomes"), (instance,))
    return Totals({tuple(row[:3]): row[3] for row in tokens}, {tuple(row[:3]): row[3] for row in requests})


def _known(database: Database, idempotency: str) -> Known | None:
    rows = database.execute(KNOWN, (idempotency,))
    return Known(rows[0][0], rows[0][1], Usage(*rows[0][2:])) if rows else None


def _room(database: Database, opening: Opening, day: str) -> tuple[int, Refusal | None]:
    """The output tokens that all budgets allow, at most `wanted`; or 0 and the budget with fewer than `least` left.

    The key's own budget is named before the skill's, which others have used too.
    """
    granted = opening.wanted
    keys = opening.key_ids or (opening.key_id,)
    limited: tuple[tuple[Holder, tuple[str, ...], Limits], ...] = (
        ("key", keys, opening.key_limits),
        ("skill", (opening.skill,), opening.limits),
    )
    for holder, owners, limits in limited:
        for period, name in periods(day):
            limit = limits.of(period)
            if limit is None:
                continue
            spent = sum(row[0] for owner in owners for row in database.execute(SPENT[holder], (owner, name)))
            granted = min(granted, limit - spent - opening.prompt)
            if granted < opening.least:
                return 0, Refusal(holder, period)
    return granted, None


def count(database: Database, counts: Mapping[str, Usage]) -> frozenset[str]:
    """Write the tokens so far of open replies, by request id; returns the ids whose row is not open."""
    rows = [(usage.prompt, usage.cached, usage.output, name) for name, usage in counts.items()]
    if database.execute_many(COUNT, rows) == len(rows):
        return frozenset()
    return frozenset(name for name in counts if not database.execute(IS_OPEN, (name,)))


def settle(database: Database, end: Settlement) -> list[str]:
    """Close a row and update totals and budgets; returns its id, or nothing if it was closed already."""
    usage, state = end.usage, "recovered" if end.outcome == "recovered" else "final"
    again = int(end.outcome == "rejected")  # a refused request may be repeated with the same Idempotency-Key
    counts = (usage.prompt, usage.cached, usage.output, end.duration, end.first_token, end.usage_from)
    values = (*counts, again, end.request_id)
    rows = database.execute(SETTLE, (state, end.outcome, end.duration, *values))
    for instance, skill, model, key, day, revision, counted_by, reserved in rows:
        _charge(database, budgets_of(skill, (key,), day), usage.prompt + usage.output, -reserved)
        for kind, value in zip(KINDS, (usage.prompt, usage.cached, usage.output), strict=True):
            database.execute(ADD_TOKENS, (instance, skill, model, kind, value))
        database.execute(ADD_OUTCOME, (instance, skill, model, end.outcome))
        named = (day, instance, skill, revision, model, key, end.outcome, counted_by)
        database.execute(ADD_DAILY, (*named, usage.prompt, usage.cached, usage.output))
    return [end.request_id] if rows else []


def number(database: Database, closed: Iterable[str]) -> None:
    """Number the rows closed in this transaction; call it last.

    The counter's row stays locked until the commit, so that a reader who sees a number sees all lower ones.
    """
    names = list(closed)
    if names:
        take = "UPDATE cursors SET value = value + ? WHERE name = 'sequence' RETURNING value"
        last = database.execute(take, (len(names),))[0][0]
        first = last - len(names) + 1
        rows = [(first + index, name) for index, name in enumerate(names)]
        database.execute_many("UPDATE requests SET sequence = ? WHERE request_id = ?", rows)


def recover(database: Database, instances: Iterable[str], now: float) -> int:
    """Close the open rows of dead `instances` as `recovered`, with the tokens counted so far; returns their number."""
    rows = sorted(row for instance in instances for row in database.execute(OPEN_ROWS, (instance,)))
    lock_budgets(database, [name for skill, day, _, key, *_ in rows for name in budgets_of(skill, (key,), day)])
    for skill, day, name, _, opened_at, *counted in rows:
        seconds = max(0.0, now - opened_at)
        settle(database, Settlement(name, Usage(*counted), "recovered", skill, day, seconds))
    number(database, [row[2] for row in rows])
    return len(rows)


def remember(database: Database, name: str, value: int) -> None:
    """Raise a cursor to `value`; it never goes back, since a replica that lost its claim may report late."""
    database.execute(REMEMBER, (name, value))


def probe(database: Database) -> None:
    """Change a row, since SQLite skips writing an unchanged page; raises if the disk has room for little else."""
    database.check_room()
    database.execute(PROBE)


def instances_with_open_rows(database: Database) -> list[str]:
    """The instances with open rows."""
    return [name for (name,) in database.execute("SELECT DISTINCT instance FROM requests WHERE state = 'open'")]
