"""Visitors' ratings in one SQLite file: the latest rating of each reply, and all-time counts by skill and rating.

Bounded: of each skill only the newest `most` ratings are kept, for its `feedback_days`; the totals count all.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import Struct

from server.chat.kept.questions import Questions
from server.errors import SecateurError
from server.storage.connection import connect, opened
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
    "CREATE TABLE IF NOT EXISTS feedback_reasons (reply TEXT PRIMARY KEY, reasons TEXT NOT NULL) WITHOUT ROWID",
)
STORE = """
INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET rating = excluded.rating, comment = excluded.comment, given_at = excluded.given_at
"""
STORE_REASONS = "INSERT INTO feedback_reasons VALUES (?, ?) ON CONFLICT DO UPDATE SET reasons = excluded.reasons"
COUNT = "INSERT INTO feedback_totals VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET value = value + 1"
PRUNE = """
DELETE FROM feedback WHERE skill = ? AND (given_at < ? OR reply IN
(SELECT reply FROM feedback WHERE skill = ? ORDER BY given_at DESC LIMIT -1 OFFSET ?))
"""
PRUNE_REASONS = "DELETE FROM feedback_reasons WHERE reply NOT IN (SELECT reply FROM feedback)"
LISTED = """
SELECT feedback.reply, given_at, skill, revision, rating, coalesce(reasons, ''), comment
FROM feedback LEFT JOIN feedback_reasons USING (reply) WHERE (skill = ? OR ? = '') AND (rating = ? OR ? = '')
AND (comment <> '' OR reasons <> '' OR ?) ORDER BY given_at DESC LIMIT ?
"""
DAY = 86_400


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
    reasons: tuple[str, ...] = ()
    """Why a reply was bad, as words of the protocol."""
    days: int = 365
    """Days after which the skill's ratings are deleted."""


class Given(NamedTuple):
    """A stored rating; `at` is in seconds since 1970."""

    reply: str
    at: float
    skill: str
    revision: str
    rating: str
    reasons: tuple[str, ...]
    comment: str


class Chosen(Struct, frozen=True):
    """Which ratings to list; an empty field chooses all."""

    skill: str = ""
    rating: Literal["up", "down", ""] = ""
    silent: bool = False
    """Whether ratings without comment and reasons too."""
    limit: int = 100


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
            now = time.time()
            row = (opinion.reply, opinion.skill, opinion.revision, opinion.rating, opinion.comment, now)
            database.execute(STORE, row)
            database.execute(STORE_REASONS, (opinion.reply, " ".join(opinion.reasons)))
            if known != [(opinion.rating,)]:
                database.execute(COUNT, (opinion.skill, opinion.rating))
            database.execute(PRUNE, (opinion.skill, now - opinion.days * DAY, opinion.skill, self._most))
            database.execute(PRUNE_REASONS)

    def given(self, chosen: Chosen) -> list[Given]:
        """The chosen ratings, the newest first; raises FeedbackUnavailable."""
        with self._transaction() as database:
            return stored(database, chosen)

    def counts(self, since: float) -> Counter[tuple[str, str, str]]:
        """(skill, revision, rating) -> stored ratings since a moment (since 1970); raises FeedbackUnavailable."""
        with self._transaction() as database:
            return counted(database, "feedback", since)

    def comments(self, replies: Iterable[str]) -> dict[str, str]:
        """The comments on these replies, by reply; raises FeedbackUnavailable."""
        select = "SELECT reply, comment FROM feedback WHERE reply = ? AND comment <> ''"
        with self._transaction() as database:
            return dict(row for reply in replies for row in database.execute(select, (reply,)))

    def erase(self, replies: Iterable[str]) -> None:
        """Delete the ratings of these replies with their comments; the totals stay. Raises FeedbackUnavailable."""
        with self._transaction() as database:
            database.execute_many("DELETE FROM feedback WHERE reply = ?", [(reply,) for reply in replies])
            database.execute(PRUNE_REASONS)

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


def listed(path: Path, chosen: Chosen) -> list[Given]:
    """The chosen ratings in the file `path`, the newest first; only reads. Raises StorageError."""
    with closing(connect(str(path), Options(read_only=True))) as database:
        return stored(database, chosen)


def stored(database: Database, chosen: Chosen) -> list[Given]:
    """The chosen ratings in an open database, the newest first."""
    skill, rating = chosen.skill, chosen.rating
    rows = database.execute(LISTED, (skill, skill, rating, rating, chosen.silent, chosen.limit))
    return [Given(row[0], row[1], row[2], row[3], row[4], tuple(row[5].split()), row[6]) for row in rows]


def counted(database: Database, table: Literal["feedback", "ratings"], since: float) -> Counter[tuple[str, str, str]]:
    """(skill, revision, rating) -> ratings in `table` since a moment; reads no comment."""
    select = (
        f"SELECT skill, revision, rating, count(*) FROM {table} WHERE given_at >= ? GROUP BY skill, revision, rating"
    )
    return Counter({(skill, revision, rating): n for skill, revision, rating, n in database.execute(select, (since,))})
