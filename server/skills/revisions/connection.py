"""The database of revisions: an SQLite file, or the PostgreSQL that replicas share. Rows are added, never changed."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from server.errors import ConfigError, SecateurError
from server.storage.connection import connect
from server.storage.database import Database, Options, StorageError
from server.storage.postgres import without_password

OPTIONS = Options(5.0, pragmas=("journal_mode = WAL", "synchronous = FULL"))
LONGEST_REASON = 500
TABLES = (
    """CREATE TABLE IF NOT EXISTS skill_revisions (
  skill TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL, author TEXT NOT NULL, made TEXT NOT NULL,
  reason TEXT NOT NULL, content TEXT NOT NULL, PRIMARY KEY (skill, number)
)""",
    """CREATE TABLE IF NOT EXISTS skill_moves (
  id INTEGER PRIMARY KEY, skill TEXT NOT NULL, number INTEGER NOT NULL, action TEXT NOT NULL, author TEXT NOT NULL,
  made TEXT NOT NULL, reason TEXT NOT NULL
)""",
    # `move` is the skill's last move at the start: the experiment ends with the next one.
    """CREATE TABLE IF NOT EXISTS skill_experiments (
  id INTEGER PRIMARY KEY, skill TEXT NOT NULL, number INTEGER NOT NULL, rival INTEGER NOT NULL,
  share DOUBLE PRECISION NOT NULL, move INTEGER NOT NULL, action TEXT NOT NULL, author TEXT NOT NULL,
  made TEXT NOT NULL, reason TEXT NOT NULL
)""",
    """CREATE TABLE IF NOT EXISTS skill_evaluations (
  id INTEGER PRIMARY KEY, skill TEXT NOT NULL, digest TEXT NOT NULL, task TEXT NOT NULL, task_digest TEXT NOT NULL,
  model TEXT NOT NULL, author TEXT NOT NULL, made TEXT NOT NULL, scores TEXT NOT NULL
)""",
)
LOCK = "LOCK TABLE skill_revisions, skill_moves, skill_experiments, skill_evaluations IN EXCLUSIVE MODE"


class RevisionsUnavailable(SecateurError):
    """The database of revisions does not answer."""

    status = 503

    def __init__(self, message: str) -> None:
        super().__init__(message, code="revisions_unavailable")


class Connection:
    """One connection to `where`, for any thread; raises ConfigError if the database cannot be used."""

    def __init__(self, where: str) -> None:
        self._lock = threading.Lock()
        try:
            self._database = connect(where, OPTIONS)
            for table in TABLES:
                self._database.execute(table)
        except StorageError as error:
            raise ConfigError(f"{without_password(where)} cannot be used for revisions of skills: {error}") from None

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._database.close()

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """The database, to read from; raises RevisionsUnavailable."""
        with self._lock:
            try:
                yield self._database
            except StorageError as error:
                raise RevisionsUnavailable(f"The revisions of skills cannot be read: {error}.") from None

    @contextmanager
    def transaction(self) -> Iterator[Database]:
        """The database for one writer at a time, of all processes: rows are numbered. Raises RevisionsUnavailable."""
        with self._lock:
            try:
                with self._database.transaction():
                    if self._database.shared:
                        self._database.execute(LOCK)
                    yield self._database
            except StorageError as error:
                raise RevisionsUnavailable(f"The revisions of skills cannot be written: {error}.") from None


def next_id(database: Database, table: str) -> int:
    """The number of the next row, within a transaction."""
    [(last,)] = database.execute(f"SELECT coalesce(max(id), 0) FROM {table}")
    return int(last) + 1


def now() -> str:
    """The moment in ISO 8601, UTC."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
