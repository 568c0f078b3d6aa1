"""Exports and erases the conversations of a visitor, beside a running server.

A reply under way is stopped by its server at the next write. The ledger keeps its rows, which hold no text.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from server.chat.conversation.transcript import Citation, Transcript
from server.chat.kept.feedback import Feedback
from server.chat.kept.sealing import Unreadable
from server.chat.kept.texts import Texts
from server.errors import ConfigError
from server.storage.database import Database

FIND = """
SELECT id, skill, begun_at, used_at FROM conversations WHERE gone = 0 AND (visitor = ? OR ? = '')
AND (skill = ? OR ? = '') AND (id = ? OR ? = '') ORDER BY begun_at, id
"""
RECENT = (
    "SELECT id, skill, begun_at, used_at FROM conversations WHERE gone = 0 AND skill = ? ORDER BY used_at DESC LIMIT ?"
)
TURNS = "SELECT reply, rating, content FROM turns WHERE conversation = ? AND state <> 'beginning' ORDER BY number"


class Chosen(Struct, frozen=True):
    """Which conversations; an empty field chooses all."""

    visitor: str = ""
    """The visitor's identity, as the page's server signs it in `sub`."""
    skill: str = ""
    conversation: str = ""


class ExportedTurn(Struct, frozen=True, omit_defaults=True):
    """A question and its reply."""

    reply: str
    question: str
    text: str
    finish: str | None
    citations: tuple[Citation, ...] = ()
    rating: str | None = None
    comment: str = ""


class ExportedConversation(Struct, frozen=True):
    """A conversation with its turns in order."""

    conversation: str
    skill: str
    begun: str
    """ISO 8601 in UTC."""
    last_message: str
    turns: tuple[ExportedTurn, ...]


def export(texts: Texts, feedback: Feedback, chosen: Chosen) -> list[ExportedConversation]:
    """The chosen conversations.

    Raises ConfigError if one cannot be decrypted, TextsUnavailable and FeedbackUnavailable.
    """
    found = texts.transact(lambda database: list(_read(texts, database, _found(texts, database, chosen))))
    return _with_comments(feedback, found)


def recent(texts: Texts, feedback: Feedback, skill: str, most: int) -> list[ExportedConversation]:
    """The `most` latest conversations with a skill, the newest first; raises as `export`."""
    found = texts.transact(lambda database: list(_read(texts, database, database.execute(RECENT, (skill, most)))))
    return _with_comments(feedback, found)


def _with_comments(feedback: Feedback, found: Sequence[ExportedConversation]) -> list[ExportedConversation]:
    comments = feedback.comments([turn.reply for one in found for turn in one.turns])
    return [_commented(one, comments) for one in found]


def erase(texts: Texts, feedback: Feedback, chosen: Chosen) -> tuple[int, int]:
    """Delete the chosen conversations and their ratings; returns the numbers of conversations and of turns.

    Raises TextsUnavailable and FeedbackUnavailable.
    """
    names, replies = texts.transact(lambda database: _delete(texts, database, chosen))
    feedback.erase(replies)
    texts.scrub()
    return len(names), len(replies)


def _delete(texts: Texts, database: Database, chosen: Chosen) -> tuple[Sequence[str], Sequence[str]]:
    names = [row[0] for row in _found(texts, database, chosen)]
    of = "SELECT reply FROM turns WHERE conversation = ?"
    replies = [reply for name in names for (reply,) in database.execute(of, (name,))]
    if names:
        rows = [(name,) for name in names]
        database.execute_many("DELETE FROM turns WHERE conversation = ?", rows)
        database.execute_many("DELETE FROM conversations WHERE id = ?", rows)
    return names, replies


def _read(texts: Texts, database: Database, rows: Sequence[Sequence[Any]]) -> Iterator[ExportedConversation]:
    for id, skill, begun_at, used_at in rows:
        turns = tuple(_turn(texts, id, row) for row in database.execute(TURNS, (id,)))
        yield ExportedConversation(id, skill, _moment(begun_at), _moment(used_at), turns)


def _turn(texts: Texts, conversation: str, row: Sequence[Any]) -> ExportedTurn:
    reply, rating, content = row
    try:
        opened = texts.seal.open(bytes(content), f"{conversation} {reply}")
    except Unreadable as error:
        raise ConfigError(f"the reply {reply} of {conversation} cannot be read: {error}") from None
    written = Transcript.decode(reply, conversation, opened)
    return ExportedTurn(reply, written.question, written.text, written.finish, written.citations, rating)


def _commented(conversation: ExportedConversation, comments: dict[str, str]) -> ExportedConversation:
    turns = tuple(replace(turn, comment=comments.get(turn.reply, "")) for turn in conversation.turns)
    return replace(conversation, turns=turns)


def _found(texts: Texts, database: Database, chosen: Chosen) -> list[tuple[Any, ...]]:
    visitor = texts.visitor(chosen.visitor)
    both = (visitor, visitor, chosen.skill, chosen.skill, chosen.conversation, chosen.conversation)
    return database.execute(FIND, both)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
