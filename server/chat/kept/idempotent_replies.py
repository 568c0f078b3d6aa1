"""Begins replies, or finds the kept one for a request repeated with its Idempotency-Key."""

from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

from msgspec import Struct

from server.chat.choices.finished import FinishedReply, finished_choices
from server.chat.choices.reply_text import Piece
from server.chat.kept.idempotency import KeptReplies, KeptReply, not_kept
from server.chat.reply import Replies, Reply
from server.chat.request import ReplyRequest
from server.metering.meter import Answered


class Origin(Struct, frozen=True):
    """The HTTP request behind a reply."""

    body: str
    """SHA-256 of its body."""
    request_id: str
    created: int
    """Seconds since 1970."""


class Started(NamedTuple):
    """A reply under way; read `pieces`, which also keep it, instead of `reply.pieces()`."""

    reply: Reply
    pieces: AsyncIterator[Piece]


class IdempotentReplies:
    """Begins replies and keeps those with an Idempotency-Key; belongs to the asyncio loop."""

    def __init__(self, replies: Replies, kept: KeptReplies) -> None:
        self._replies = replies
        self._kept = kept

    async def begin(self, origin: Origin, request: ReplyRequest) -> KeptReply | Started:
        """The kept reply for the request's key, or a new one, which the caller must close.

        Raises InvalidRequest for a key of another body, Conflict for one that only the ledger knows, TextsUnavailable,
        and what `Replies.begin` raises.
        """
        key = request.idempotency
        if key is not None and (kept := await self._kept.find(key, origin.body)):
            return kept
        try:
            reply = await self._replies.begin(origin.request_id, request)
        except Answered as answered:
            raise not_kept(answered.known) from None
        return Started(reply, reply.pieces() if key is None else self._keep(key, origin, reply))

    async def _keep(self, key: str, origin: Origin, reply: Reply) -> AsyncIterator[Piece]:
        """The reply's pieces; keeps the reply after the last one."""
        pieces = []
        async for piece in reply.pieces():
            pieces.append(piece)
            yield piece
        await self._kept.keep(key, KeptReply(origin.body, origin.request_id, origin.created, finished(reply, pieces)))


def finished(reply: Reply, pieces: Iterable[Piece]) -> FinishedReply:
    """The reply with its text, from all its pieces, once it has ended."""
    finishes = [finish for finish in reply.finishes if finish is not None]
    return FinishedReply(finished_choices(pieces, finishes), reply.usage, reply.ended_by_server, reply.clamped)
