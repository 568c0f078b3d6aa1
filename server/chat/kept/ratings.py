"""Ratings beside the conversations, shared by replicas: comments and reasons are sealed, totals are each instance's.

Ratings of an earlier start, in the SQLite file of `Feedback`, are moved here once. That file goes on to hold the
questions of `keep_questions`.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from server.chat.kept.feedback import (
    DAY,
    Chosen,
    Feedback,
    FeedbackUnavailable,
    Given,
    Opinion,
    counted,
    stored,
)
from server.chat.kept.schema import now
from server.chat.kept.sealing import Unreadable
from server.chat.kept.texts import Texts, TextsUnavailable
from server.storage.database import Database

STORE = """
INSERT INTO ratings VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (reply) DO UPDATE SET rating = excluded.rating,
given_at = excluded.given_at, content = excluded.content
"""
MOVE = "INSERT INTO ratings VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
COUNT = """
INSERT INTO rating_totals VALUES (?, ?, ?, ?)
ON CONFLICT (instance, skill, rating) DO UPDATE SET value = rating_totals.value + excluded.value
"""
PRUNE = """
DELETE FROM ratings WHERE skill = ? AND (given_at < ? OR reply IN
(SELECT reply FROM ratings WHERE skill = ? ORDER BY given_at DESC, reply DESC LIMIT 1000000000 OFFSET ?))
"""
LISTED = """
SELECT reply, given_at, skill, revision, rating, content FROM ratings WHERE (skill = ? OR ? = '')
AND (rating = ? OR ? = '') ORDER BY given_at DESC, reply DESC
"""
T = TypeVar("T")


class Said(msgspec.Struct, frozen=True):
    """What a visitor said beside the rating."""

    comment: str = ""
    reasons: tuple[str, ...] = ()


class SharedFeedback(Feedback):
    """The ratings in `texts`; the file `path` holds questions, and ratings until they are moved."""

    def __init__(self, texts: Texts, path: Path, *, instance: str = "", most: int = 10_000) -> None:
        """Raises FeedbackUnavailable if ratings in the file cannot be moved."""
        super().__init__(path, most=most)
        self._texts = texts
        self._instance = instance
        self._move()

    def give(self, opinion: Opinion) -> None:
        """Store or take back a rating; a repeated rating is not counted again. Raises FeedbackUnavailable."""
        self._run(lambda database: self._give(database, opinion))

    def given(self, chosen: Chosen) -> list[Given]:
        """The chosen ratings, the newest first; raises FeedbackUnavailable."""
        return self._run(lambda database: listed(database, self._texts, chosen))

    def counts(self, since: float) -> Counter[tuple[str, str, str]]:
        """(skill, revision, rating) -> stored ratings since a moment (since 1970); raises FeedbackUnavailable."""
        return self._run(lambda database: counted(database, "ratings", since))

    def comments(self, replies: Iterable[str]) -> dict[str, str]:
        """The comments on these replies, by reply; raises FeedbackUnavailable."""
        select = "SELECT reply, content FROM ratings WHERE reply = ?"

        def work(database: Database) -> dict[str, str]:
            rows = [row for reply in replies for row in database.execute(select, (reply,))]
            return {reply: said for reply, content in rows if (said := _opened(self._texts, reply, content).comment)}

        return self._run(work)

    def erase(self, replies: Iterable[str]) -> None:
        """Delete the ratings of these replies with their comments; the totals stay. Raises FeedbackUnavailable."""
        rows = [(reply,) for reply in replies]
        if rows:
            self._run(lambda database: database.execute_many("DELETE FROM ratings WHERE reply = ?", rows))

    def totals(self) -> Mapping[tuple[str, str], int]:
        """(skill, rating) -> how often visitors of this instance gave it; raises FeedbackUnavailable."""
        select = "SELECT skill, rating, value FROM rating_totals WHERE instance = ?"
        rows = self._run(lambda database: database.execute(select, (self._instance,)))
        return {(skill, rating): value for skill, rating, value in rows}

    def _give(self, database: Database, opinion: Opinion) -> None:
        if opinion.rating is None:
            database.execute("DELETE FROM ratings WHERE reply = ?", (opinion.reply,))
            return
        known = database.execute("SELECT rating FROM ratings WHERE reply = ?", (opinion.reply,))
        moment, content = now(database), self._sealed(opinion.reply, Said(opinion.comment, opinion.reasons))
        skill = opinion.skill
        database.execute(STORE, (opinion.reply, skill, opinion.revision, opinion.rating, moment, content))
        if known != [(opinion.rating,)]:
            database.execute(COUNT, (self._instance, skill, opinion.rating, 1))
        database.execute(PRUNE, (skill, moment - opinion.days * DAY, skill, self._most))

    def _move(self) -> None:
        """Move the ratings of the file; a crash in between moves them once, at the next start."""
        with self._transaction() as file:
            file.execute("CREATE TABLE IF NOT EXISTS feedback_move (id TEXT NOT NULL)")
            if not file.execute("SELECT 1 FROM feedback_totals LIMIT 1"):
                return
            if not file.execute("SELECT 1 FROM feedback_move"):
                file.execute("INSERT INTO feedback_move VALUES (?)", (secrets.token_hex(16),))
            [(move,)] = file.execute("SELECT id FROM feedback_move")
            ratings = stored(file, Chosen(silent=True, limit=1 << 31))
            totals = file.execute("SELECT skill, rating, value FROM feedback_totals")
        self._run(lambda database: self._take(database, move, ratings, totals))
        with self._transaction() as file:
            for table in ("feedback", "feedback_reasons", "feedback_totals", "feedback_move"):
                file.execute(f"DELETE FROM {table}")

    def _take(
        self, database: Database, move: str, ratings: Iterable[Given], totals: Iterable[tuple[str, str, int]]
    ) -> None:
        insert = "INSERT INTO rating_moves VALUES (?) ON CONFLICT DO NOTHING RETURNING id"
        if not database.execute(insert, (move,)):
            return
        for one in ratings:
            content = self._sealed(one.reply, Said(one.comment, one.reasons))
            database.execute(MOVE, (one.reply, one.skill, one.revision, one.rating, one.at, content))
        for skill, rating, value in totals:
            database.execute(COUNT, (self._instance, skill, rating, value))

    def _sealed(self, reply: str, said: Said) -> bytes:
        return self._texts.seal.close(msgspec.msgpack.encode(said), _row(reply))

    def _run(self, work: Callable[[Database], T]) -> T:
        try:
            return self._texts.transact(work)
        except TextsUnavailable as error:
            raise FeedbackUnavailable(f"The ratings cannot be reached: {error}") from None


def listed(database: Database, texts: Texts, chosen: Chosen) -> list[Given]:
    """The chosen ratings, the newest first; raises FeedbackUnavailable if one cannot be decrypted."""
    found: list[Given] = []
    values = (chosen.skill, chosen.skill, chosen.rating, chosen.rating)
    for reply, at, skill, revision, rating, content in database.execute(LISTED, values):
        said = _opened(texts, reply, content)
        if chosen.silent or said.comment or said.reasons:
            found.append(Given(reply, at, skill, revision, rating, said.reasons, said.comment))
        if len(found) >= chosen.limit:
            break
    return found


def _opened(texts: Texts, reply: str, content: bytes) -> Said:
    try:
        return msgspec.msgpack.decode(texts.seal.open(bytes(content), _row(reply)), type=Said)
    except (Unreadable, msgspec.DecodeError) as error:
        raise FeedbackUnavailable(f"The comment on {reply} cannot be read: {error}.") from None


def _row(reply: str) -> str:
    """The name of a rating's row, to which its content is bound."""
    return f"rating {reply}"
