"""Moves closed rows of past months from the ledger to files; the ledger keeps their sums, so that no total changes.

First the files are complete on the disk, then rows leave the ledger in short transactions, each of which adds to
`archived_...` in `daily` exactly what it deletes. A killed run goes on where it was when it is started anew.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from server.errors import ConfigError
from server.metering.ledger.archive.files import COLUMNS, Archive, Form, Row, Selection, read, write
from server.metering.ledger.connection import DURABLE
from server.metering.ledger.schema import GROUPED, SUMMED
from server.metering.ledger.transactions import day_of
from server.storage.connection import connect
from server.storage.database import Database, Options

READ = 10_000
"""Rows read at once."""
MOVED = 2_000
"""Rows that leave in one transaction: short enough that a server beside it does not wait for the file."""
SELECTED = "state <> 'open' AND day < ? AND sequence > ? AND sequence <= ?"
TAKE = f"""
SELECT max(sequence) FROM (SELECT sequence FROM requests WHERE {SELECTED} ORDER BY sequence LIMIT {MOVED}) AS batch
"""
SUMS = f"""
SELECT {", ".join(GROUPED)}, count(*), sum(prompt_tokens), sum(cached_tokens), sum(output_tokens) FROM requests
WHERE {SELECTED} GROUP BY {", ".join(GROUPED)}
"""
ADD = f"""
UPDATE daily SET {", ".join(f"archived_{name} = archived_{name} + ?" for name in SUMMED)}
WHERE {" AND ".join(f"{name} = ?" for name in GROUPED)}
"""
PROGRESS = "UPDATE archives SET moved_requests = moved_requests + ?, moved_tokens = moved_tokens + ? WHERE digest = ?"
WHOLE = "SELECT count(*), coalesce(sum(prompt_tokens + output_tokens), 0) FROM requests WHERE " + SELECTED


def opened(where: str) -> Database:
    """A connection that writes beside a server's; raises StorageError, or ConfigError for a ledger before version 4."""
    database = connect(where, Options(pragmas=DURABLE))
    if "archives" not in database.tables():
        database.close()
        raise ConfigError(f"{database.where} is an older ledger: start its server once, which upgrades it")
    return database


def check_day(before: str, now: float) -> None:
    """Raise ConfigError if `before` is later than the first day of the month, whose budgets are still open."""
    first = day_of(now)[:7] + "-01"
    if before > first:
        raise ConfigError(
            f"--before {before} would archive days of {first[:7]}, whose budgets are still open: "
            f"name {first} or earlier"
        )


def prepare(database: Database, folder: Path, before: str, form: Form, *, undelivered: bool = False) -> Archive | None:
    """Write the closed rows of days before `before` to `folder`, or read the archive that is there; then enter it.

    None if there is no such row. `undelivered` also takes rows that a webhook has not had. Raises ConfigError for a
    folder of another archive, for another archive that was not finished, and for undelivered rows.
    """
    unfinished = database.execute("SELECT digest, name FROM archives WHERE moved_requests < requests")
    made = read(folder) if folder.exists() else None
    others = [name for digest, name in unfinished if made is None or digest != made.digest]
    if others:
        raise ConfigError(f"the archive {others[0]} is not finished: name its folder to go on with it")
    if made is None:
        selection = select(database, before)
        if not selection.requests:
            return None
        _check_webhooks(database, selection, undelivered)
        made = write(folder, form, selection, batches(database, selection))
    if made.manifest.selection.before != before:
        raise ConfigError(f"{folder} holds an archive of the days before {made.manifest.selection.before}")
    _register(database, made)
    return made


def select(database: Database, before: str) -> Selection:
    """The closed rows of days before `before`, as they are now."""
    statement = "SELECT coalesce(max(sequence), 0) FROM requests WHERE state <> 'open' AND day < ?"
    [(through,)] = database.execute(statement, (before,))
    [(requests, tokens)] = database.execute(WHOLE, (before, 0, through))
    return Selection(before, through, int(requests), int(tokens))


def batches(database: Database, selection: Selection) -> Iterator[list[Row]]:
    """The selected rows with the columns of an archive, in the order of their numbers, READ at once."""
    statement = f"SELECT {', '.join(COLUMNS)} FROM requests WHERE {SELECTED} ORDER BY sequence LIMIT {READ}"
    after = 0
    while found := database.execute(statement, (selection.before, after, selection.through)):
        yield list(found)
        after = found[-1][0]


def move(database: Database, made: Archive, step: Callable[[], None]) -> int:
    """Take the archived rows out of the ledger, MOVED for each `step`; returns their number.

    Pauses after each transaction for as long as it took, so that a server beside it keeps half of the time.
    """
    selection = made.manifest.selection
    after = moved = 0
    while True:
        started = time.monotonic()
        with database.transaction():
            [(last,)] = database.execute(TAKE, (selection.before, after, selection.through))
            if last is None:
                return moved
            taken = _take(database, made.digest, (selection.before, after, last))
        moved, after = moved + taken, last
        step()
        time.sleep(time.monotonic() - started)


def _take(database: Database, digest: str, which: tuple[str, int, int]) -> int:
    """Delete rows and add them to the sums, within the caller's transaction; returns their number."""
    requests = tokens = 0
    for *group, count, prompt, cached, output in database.execute(SUMS, which):
        values = (int(count), int(prompt), int(cached), int(output))
        if database.execute_many(ADD, [(*values, *group)]) != 1:
            raise ConfigError(
                "the ledger's sums lack a row of its replies: run `secateur reconcile`; nothing was moved"
            )
        requests, tokens = requests + values[0], tokens + values[1] + values[3]
    database.execute(f"DELETE FROM requests WHERE {SELECTED}", which)
    database.execute(PROGRESS, (requests, tokens, digest))
    return requests


def left_open(database: Database, before: str) -> int:
    """The open rows of days before `before`: no archive takes them."""
    [(count,)] = database.execute("SELECT count(*) FROM requests WHERE state = 'open' AND day < ?", (before,))
    return int(count)


def _register(database: Database, made: Archive) -> None:
    """Enter the archive in the ledger, unless it is; raises ConfigError if it does not hold what the ledger has."""
    selection = made.manifest.selection
    with database.transaction():
        if database.execute("SELECT 1 FROM archives WHERE digest = ?", (made.digest,)):
            return
        [(requests, tokens)] = database.execute(WHOLE, (selection.before, 0, selection.through))
        if (int(requests), int(tokens)) != (selection.requests, selection.tokens):
            raise ConfigError(
                f"{made.folder} has {selection.requests} rows with {selection.tokens} tokens and the ledger "
                f"{int(requests)} with {int(tokens)}: it is an archive of another ledger; name a new folder"
            )
        database.execute(
            "INSERT INTO archives VALUES (?, ?, ?, ?, ?, ?, 0, 0)",
            (made.digest, made.folder.name, selection.before, selection.through, selection.requests, selection.tokens),
        )


def _check_webhooks(database: Database, selection: Selection, undelivered: bool) -> None:
    statement = "SELECT name, value FROM cursors WHERE substr(name, 1, 8) = 'webhook:' AND value < ?"
    for name, value in database.execute(statement, (selection.through,)) if not undelivered else ():
        raise ConfigError(
            f"the receiver {name} has had rows up to {value} and rows up to {selection.through} would leave before "
            "it has them: wait for it, or give --undelivered if it is gone"
        )
