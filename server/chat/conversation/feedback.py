"""What visitors thought of replies: the latest rating of each, by skill, and how many were given, in one SQLite file.

Bounded: beyond `most` ratings of a skill the oldest go; the totals stay.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from server.errors import ConfigError, SecateurError

BUSY_SECONDS = 5.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS feedback (
  reply TEXT PRIMARY KEY, skill TEXT NOT NULL, revision TEXT NOT NULL, rating TEXT NOT NULL,
  comment TEXT NOT NULL, given_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS feedback_of_skill ON feedback (skill, given_at);
CREATE TABLE IF NOT EXISTS feedback_totals (
  skill TEXT, rating TEXT, value INTEGER NOT NULL, PRIMARY KEY (skill, rating)
) WITHOUT ROWID;
"""
STORE = """
INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET rating = excluded.rating, comment = excluded.comment, given_at = excluded.given_at
"""
COUNT = "INSERT INTO feedback_totals VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET value = value + 1"
PRUNE = """
DELETE FROM feedback WHERE reply IN
(SELECT reply FROM feedback WHERE skill = ? ORDER BY given_at DESC LIMIT -1 OFFSET ?)
"""


class FeedbackUnavailable(SecateurError):
    """The file of ratings cannot be written."""

    status = 503


class Opinion(Struct, frozen=True):
    """A rating of one reply; None takes it back."""

    reply: str
    skill: str
    revision: str
    rating: str | None
    comment: str = ""


class Feedback:
    """Owns the SQLite file `path`; every method may be called from any thread."""

    def __init__(self, path: Path, *, most: int = 10_000) -> None:
        self._most = most
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path} cannot be used for feedback: {error}") from None

    def give(self, opinion: Opinion) -> None:
        """Store or take back a rating; each change to another rating counts, the same one sent again does not."""
        with self._transaction() as database:
            known = database.execute("SELECT rating FROM feedback WHERE reply = ?", (opinion.reply,)).fetchone()
            if opinion.rating is None:
                database.execute("DELETE FROM feedback WHERE reply = ?", (opinion.reply,))
                return
            row = (opinion.reply, opinion.skill, opinion.revision, opinion.rating, opinion.comment, time.time())
            database.execute(STORE, row)
            if known is None or known[0] != opinion.rating:
                database.execute(COUNT, (opinion.skill, opinion.rating))
            database.execute(PRUNE, (opinion.skill, self._most))

    def totals(self) -> Mapping[tuple[str, str], int]:
        """(skill, rating) -> how often it was given."""
        rows = self._read("SELECT skill, rating, value FROM feedback_totals")
        return {(skill, rating): value for skill, rating, value in rows}

    def latest(self, skill: str, count: int) -> list[dict[str, object]]:
        """The latest ratings of a skill, the newest first."""
        names = ("reply", "skill", "revision", "rating", "comment", "given_at")
        rows = self._read("SELECT * FROM feedback WHERE skill = ? ORDER BY given_at DESC LIMIT ?", (skill, count))
        return [dict(zip(names, row, strict=True)) for row in rows]

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def _read(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query; raises FeedbackUnavailable."""
        with self._lock:
            try:
                return self._database.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise FeedbackUnavailable(
                    f"The ratings cannot be read: {error}.", code="feedback_unavailable"
                ) from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything or nothing; raises FeedbackUnavailable."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                    self._database.execute("COMMIT")
                finally:
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
            except sqlite3.Error:
                raise FeedbackUnavailable(
                    "The rating could not be stored; try again later.", code="feedback_unavailable"
                ) from None
