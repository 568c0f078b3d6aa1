"""Visitors' ratings in one SQLite file: the latest rating of each reply, and all-time counts by skill and rating.

Bounded: of each skill only the newest `most` ratings are kept; the totals count all.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from server.chat.conversation.questions import Questions
from server.errors import SecateurError
from server.storage.connection import opened
from server.storage.database import Database, Options, StorageError

BUSY_SECONDS = 5.0
TABLES = (
    """CREATE TABLE IF NOT EXISTS feedback (
  reply TEXT PRIMARY KEY, skill TEXT NOT NULL, revision TEXT NOT NULL, rating TEXT NOT NULL,
  comment TEXT NOT NULL, given_at REAL NOT NULL
) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS feedback_of_skill ON feedback (skill, given_at)",
    """CREATE TABLE IF NOT EXISTS feedback_totals (
  skill TEXT, rating TEXT, value INTEGER NOT NULL, PRIMARY KEY (skill, rating)
) WITHOUT ROWID""",
)
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
    """The file of ratings cannot be read or written."""

    status = 503

    def __init__(self, message: str) -> None:
        super().__init__(message, code="feedback_unavailable")


class Opinion(Struct, frozen=True):
    """A visitor's rating of one reply; None takes it back."""

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
        self._database = opened(path, "feedback", TABLES, Options(BUSY_SECONDS, pragmas=("journal_mode = WAL",)))
        self.questions = Questions(path)
        """Kept in the same file."""

    def give(self, opinion: Opinion) -> None:
        """Store or take back a rating; a repeated rating is not counted again. Raises FeedbackUnavailable."""
        with self._transaction() as database:
            known = database.execute("SELECT rating FROM feedback WHERE reply = ?", (opinion.reply,))
            if opinion.rating is None:
                database.execute("DELETE FROM feedback WHERE reply = ?", (opinion.reply,))
                return
            row = (opinion.reply, opinion.skill, opinion.revision, opinion.rating, opinion.comment, time.time())
            database.execute(STORE, row)
            if known != [(opinion.rating,)]:
                database.execute(COUNT, (opinion.skill, opinion.rating))
            database.execute(PRUNE, (opinion.skill, self._most))

    def comments(self, replies: Iterable[str]) -> dict[str, str]:
        """The comments on these replies, by reply; raises FeedbackUnavailable."""
        select = "SELECT reply, comment FROM feedback WHERE reply = ? AND comment <> ''"
        with self._transaction() as database:
            return dict(row for reply in replies for row in database.execute(select, (reply,)))

    def erase(self, replies: Iterable[str]) -> None:
        """Delete the ratings of these replies with their comments; the totals stay. Raises FeedbackUnavailable."""
        with self._transaction() as database:
            database.execute_many("DELETE FROM feedback WHERE reply = ?", [(reply,) for reply in replies])

    def totals(self) -> Mapping[tuple[str, str], int]:
        """(skill, rating) -> how often it was given; raises FeedbackUnavailable."""
        with self._lock:
            try:
                rows = self._database.execute("SELECT skill, rating, value FROM feedback_totals")
            except StorageError as error:
                raise FeedbackUnavailable(f"The ratings cannot be read: {error}.") from None
        return {(skill, rating): value for skill, rating, value in rows}

    def close(self) -> None:
        """Close the file."""
        self.questions.close()
        with self._lock:
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[Database]:
        with self._lock:
            try:
                with self._database.transaction():
                    yield self._database
            except StorageError:
                raise FeedbackUnavailable("The rating could not be stored; try again later.") from None
