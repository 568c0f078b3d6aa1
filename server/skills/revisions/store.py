"""The database of revisions: an SQLite file, or the PostgreSQL that replicas share. Rows are added, never changed.

A move publishes a revision of a skill, or withdraws the skill; the last move of a skill says what is served.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from msgspec import Struct

from server.errors import ConfigError, Conflict, NotFound, SecateurError
from server.skills.revisions.text import parse
from server.skills.skill import Skill
from server.storage.connection import connect
from server.storage.database import Database, Options, StorageError
from server.storage.postgres import without_password

Action = Literal["publish", "rollback", "withdraw"]
OPTIONS = Options(5.0, pragmas=("journal_mode = WAL", "synchronous = FULL"))
LONGEST_REASON = 500


class RevisionsUnavailable(SecateurError):
    """The database of revisions does not answer."""

    status = 503

    def __init__(self, message: str) -> None:
        super().__init__(message, code="revisions_unavailable")


class Revision(Struct, frozen=True):
    """One saved text of a skill."""

    skill: str
    number: int
    """1 for the skill's first, then counting."""
    digest: str
    """`Skill.revision`, which the ledger records with each reply."""
    author: str
    made: str
    """ISO 8601, UTC."""
    reason: str
    text: str = ""


class Move(Struct, frozen=True):
    """A change of what is served; `number` is the revision, 0 for none."""

    id: int
    skill: str
    number: int
    action: Action
    author: str
    made: str
    reason: str


class Revisions:
    """Owns one connection to `where`; every method may be called from any thread and raises RevisionsUnavailable.

    `folder` is where the files of keys lie. Raises ConfigError if the database cannot be used.
    """

    def __init__(self, where: str, folder: Path) -> None:
        self.where = without_password(where)
        self._folder = folder
        self._lock = threading.Lock()
        try:
            self._database = connect(where, OPTIONS)
            for table in tables(self._database):
                self._database.execute(table)
        except StorageError as error:
            raise ConfigError(f"{self.where} cannot be used for revisions of skills: {error}") from None

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._database.close()

    def save(self, name: str, text: str, *, author: str, reason: str, after: int | None = None) -> Revision:
        """Keep `text` as the skill's next revision, and return it; the same text again returns the last one.

        Raises ConfigError for a mistake in the text, and Conflict if `after` is given and another revision was saved
        since that one.
        """
        skill = parse(text, self._folder, name)
        with self._transaction() as database:
            last = self._last(database, name)
            if after is not None and (last.number if last else 0) != after:
                number, who = (last.number, last.author) if last else (0, "nobody")
                raise Conflict(f"{name}@{number} was saved meanwhile by {who}: compare it, then save again.")
            if last is not None and last.text == text:
                return last
            number = (last.number if last else 0) + 1
            made = Revision(name, number, skill.revision, author, _now(), reason[:LONGEST_REASON], text)
            row = (made.skill, made.number, made.digest, made.author, made.made, made.reason, made.text)
            database.execute(f"INSERT INTO skill_revisions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return made

    def publish(self, name: str, number: int, *, author: str, reason: str, action: Action = "publish") -> Move:
        """Serve this revision from now on; raises NotFound."""
        self.get(name, number)
        return self._move(name, number, action, author, reason)

    def rollback(self, name: str, *, author: str, reason: str) -> Move:
        """Serve again what was served before the skill's last move; raises NotFound if nothing was."""
        moves = self.moves(name)
        before = [move.number for move in moves if move.number != moves[-1].number] if moves else []
        if not before:
            raise NotFound(f"Nothing else was published of {name!r} before.", param="name")
        return self._move(name, before[-1], "rollback", author, reason)

    def withdraw(self, name: str, *, author: str, reason: str) -> Move:
        """Serve no revision of the skill any more, but its file, if there is one."""
        return self._move(name, 0, "withdraw", author, reason)

    def get(self, name: str, number: int | Literal["published", "draft"]) -> Revision:
        """A revision with its text, by number, the published one, or the latest; raises NotFound."""
        if number == "published":
            number = next((move.number for move in reversed(self.moves(name))), 0)
        with self._reading() as database:
            if number == "draft":
                found = self._last(database, name)
            else:
                select = f"SELECT {COLUMNS} FROM skill_revisions WHERE skill = ? AND number = ?"
                found = next((Revision(*row) for row in database.execute(select, (name, number))), None)
        if found is None:
            raise NotFound(f"There is no revision {name}@{number}.", param="revision")
        return found

    def names(self) -> list[str]:
        """The skills that have revisions."""
        with self._reading() as database:
            return [name for (name,) in database.execute("SELECT DISTINCT skill FROM skill_revisions ORDER BY skill")]

    def list(self, name: str) -> Sequence[Revision]:
        """The skill's revisions without their texts, the first first."""
        with self._reading() as database:
            select = f"SELECT {COLUMNS.removesuffix(', content')} FROM skill_revisions WHERE skill = ? ORDER BY number"
            return [Revision(*row) for row in database.execute(select, (name,))]

    def moves(self, name: str | None = None) -> Sequence[Move]:
        """The moves of one skill, or of all, the first first."""
        with self._reading() as database:
            select = "SELECT id, skill, number, action, author, made, reason FROM skill_moves"
            where, values = (" WHERE skill = ?", (name,)) if name is not None else ("", ())
            return [Move(*row) for row in database.execute(f"{select}{where} ORDER BY id", values)]

    def stamp(self) -> int:
        """A number that grows with each move."""
        with self._reading() as database:
            [(latest,)] = database.execute("SELECT coalesce(max(id), 0) FROM skill_moves")
        return int(latest)

    def published(self) -> Sequence[Skill]:
        """Every skill with a published revision, parsed; raises ConfigError for one that this release cannot read."""
        current = {move.skill: move.number for move in self.moves()}
        return [parse(self.get(name, number).text, self._folder, name) for name, number in current.items() if number]

    def _move(self, name: str, number: int, action: Action, author: str, reason: str) -> Move:
        made = _now()
        with self._transaction() as database:
            [(last,)] = database.execute("SELECT coalesce(max(id), 0) FROM skill_moves")
            row = (last + 1, name, number, action, author, made, reason[:LONGEST_REASON])
            database.execute("INSERT INTO skill_moves VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return Move(*row)

    def _last(self, database: Database, name: str) -> Revision | None:
        select = f"SELECT {COLUMNS} FROM skill_revisions WHERE skill = ? ORDER BY number DESC LIMIT 1"
        return next((Revision(*row) for row in database.execute(select, (name,))), None)

    @contextmanager
    def _reading(self) -> Iterator[Database]:
        with self._lock:
            try:
                yield self._database
            except StorageError as error:
                raise RevisionsUnavailable(f"The revisions of skills cannot be read: {error}.") from None

    @contextmanager
    def _transaction(self) -> Iterator[Database]:
        """One writer at a time, of all processes: rows are numbered."""
        with self._lock:
            try:
                with self._database.transaction():
                    if self._database.shared:
                        self._database.execute("LOCK TABLE skill_revisions, skill_moves IN EXCLUSIVE MODE")
                    yield self._database
            except StorageError as error:
                raise RevisionsUnavailable(f"The revisions of skills cannot be written: {error}.") from None


COLUMNS = "skill, number, digest, author, made, reason, content"


def tables(database: Database) -> Iterator[str]:
    """The statements that make the tables where they are missing."""
    yield """CREATE TABLE IF NOT EXISTS skill_revisions (
  skill TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL, author TEXT NOT NULL, made TEXT NOT NULL,
  reason TEXT NOT NULL, content TEXT NOT NULL, PRIMARY KEY (skill, number)
)"""
    yield """CREATE TABLE IF NOT EXISTS skill_moves (
  id INTEGER PRIMARY KEY, skill TEXT NOT NULL, number INTEGER NOT NULL, action TEXT NOT NULL, author TEXT NOT NULL,
  made TEXT NOT NULL, reason TEXT NOT NULL
)"""


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
