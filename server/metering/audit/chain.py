"""The chain of audit entries: each is numbered and carries the SHA-256 of the entry before.

The owner of the database can rewrite all of it; a hash noted elsewhere is the anchor that shows this.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple, replace

from server.storage.database import Database
from server.storage.postgres import advisory_key

TABLE = "audit"
GENESIS = "0" * 64
"""The hash that the first entry carries."""
COLUMNS = ("number", "moment", "who", "action", "object", "address", "result", "previous", "hash")
BATCH = 1000
_FIRST = -(2**63)
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM {TABLE}"
_INSERT = f"INSERT INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Event(Struct, frozen=True):
    """Something to record; never holds a prompt's text or a key."""

    who: str
    """An API key's id, `this machine`, an account of this machine, or `server`."""
    action: str
    object: str = ""
    address: str = ""
    """The client's IP address; empty for what the server did itself."""
    result: str = ""
    once: bool = False
    """Skip the event if the log already has one of the same action and object."""


class Entry(Struct, frozen=True):
    """A recorded event, in the order of COLUMNS."""

    number: int
    moment: str
    """When it happened: ISO 8601 in UTC, with microseconds."""
    who: str
    action: str
    object: str
    address: str
    result: str
    previous: str
    """The hash of the entry before."""
    hash: str

    @property
    def digest(self) -> str:
        """The SHA-256 of all other fields, as the entry's `hash` must be."""
        content = json.dumps(astuple(self)[:-1], ensure_ascii=True, separators=(",", ":"), default=repr)
        return hashlib.sha256(content.encode()).hexdigest()


def prepare(database: Database) -> None:
    """Create the table unless the database has it; its triggers refuse UPDATE and DELETE."""
    with database.transaction():
        _lock(database)
        if TABLE in database.tables():
            return
        number = "BIGINT" if database.shared else "INTEGER"
        database.execute(
            f"CREATE TABLE {TABLE} (number {number} PRIMARY KEY, moment TEXT NOT NULL, who TEXT NOT NULL, "
            "action TEXT NOT NULL, object TEXT NOT NULL, address TEXT NOT NULL, result TEXT NOT NULL, "
            "previous TEXT NOT NULL UNIQUE, hash TEXT NOT NULL UNIQUE)"
        )
        database.execute(f"CREATE INDEX audit_by_object ON {TABLE} (action, object)")
        database.make_append_only(TABLE)


def append(database: Database, events: Iterable[tuple[float, Event]]) -> list[Entry]:
    """Append events, each with its time in seconds since 1970, in one transaction; returns the new entries."""
    with database.transaction():
        _lock(database)
        number, previous = _head(database)
        made = []
        for moment, event in events:
            if event.once and _known(database, event):
                continue
            number += 1
            entry = _entry(number, moment, event, previous)
            database.execute(_INSERT, astuple(entry))
            made.append(entry)
            previous = entry.hash
    return made


def entries(database: Database) -> Iterator[Entry]:
    """All entries in the order of their numbers; call it within one snapshot."""
    after, batch = _FIRST, True
    while batch:
        rows = database.execute(f"{_SELECT} WHERE number > ? ORDER BY number LIMIT {BATCH}", (after,))
        yield from (Entry(*row) for row in rows)
        batch = len(rows) == BATCH
        after = rows[-1][0] if rows else after


def faults(found: Iterable[Entry]) -> Iterator[str]:
    """A sentence for each place where the chain is broken, the first one first."""
    number, previous = 0, GENESIS
    for entry in found:
        if entry.number > number + 1:
            last = entry.number - 1
            gone = f"entry {last} was" if last == number + 1 else f"entries {number + 1} to {last} were"
            yield f"{gone} removed"
        elif entry.number <= number:
            yield f"entry {entry.number} was inserted before the first or twice"
        elif entry.digest != entry.hash:
            yield f"entry {entry.number} was changed or inserted: its hash is not that of its content"
        elif entry.previous != previous:
            yield f"entry {entry.number} was inserted, or entry {number} replaced: it does not carry that entry's hash"
        number, previous = entry.number, entry.hash


def objects(database: Database, action: str) -> set[str]:
    """The distinct `object` fields of all entries with this action."""
    rows: Sequence[tuple[Any, ...]] = database.execute(f"SELECT object FROM {TABLE} WHERE action = ?", (action,))
    return {name for (name,) in rows}


def _entry(number: int, moment: float, event: Event, previous: str) -> Entry:
    when = datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds")
    who, action, object, address, result = (
        _clean(text) for text in (event.who, event.action, event.object, event.address, event.result)
    )
    entry = Entry(number, when, who, action, object, address, result, previous, hash="")
    return replace(entry, hash=entry.digest)


def _clean(text: str) -> str:
    """At most 500 printable characters, which every database stores as they are."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text[:500])


def _head(database: Database) -> tuple[int, str]:
    """The number and hash of the last entry."""
    rows = database.execute(f"SELECT number, hash FROM {TABLE} ORDER BY number DESC LIMIT 1")
    return rows[0] if rows else (0, GENESIS)


def _known(database: Database, event: Event) -> bool:
    statement = f"SELECT 1 FROM {TABLE} WHERE action = ? AND object = ? LIMIT 1"
    return bool(database.execute(statement, (event.action, _clean(event.object))))


def _lock(database: Database) -> None:
    """Keep other writers out until the transaction ends; SQLite's transactions do so already."""
    if database.shared:
        database.execute("SELECT pg_advisory_xact_lock(?)", (advisory_key("audit"),))
