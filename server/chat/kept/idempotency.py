"""Replies kept under their Idempotency-Key: a repeated request gets the same reply without generating it again.

They lie beside the conversations, bounded in bytes and time. The ledger keeps no text; for a reply no longer kept it
knows only how it ended.
"""

import hashlib
import logging
from functools import partial

import msgspec
from msgspec import Struct

from server.chat.choices.finished import FinishedReply
from server.chat.kept.schema import now
from server.chat.kept.sealing import Unreadable
from server.chat.kept.texts import Texts, TextsUnavailable
from server.errors import Conflict, InvalidRequest
from server.metering.ledger.records import Known
from server.storage.database import Database

KEEP_SECONDS = 3600.0
KEEP_BYTES = 16 << 20
OVERHEAD = 512  # bytes of an entry beside its content
LONGEST_KEY = 255
KEEP = "INSERT INTO kept_replies VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
OLDEST = "SELECT key, size FROM kept_replies ORDER BY ends_at"
logger = logging.getLogger(__name__)


class KeptReply(Struct, frozen=True):
    """A finished reply."""

    body: str
    """SHA-256 of the request's body."""
    request_id: str
    created: int
    """Seconds since 1970."""
    reply: FinishedReply


class KeptReplies:
    """Finished replies by `idempotency_digest`; the oldest are dropped beyond `most` bytes or after `seconds`."""

    def __init__(self, texts: Texts, *, seconds: float = KEEP_SECONDS, most: int = KEEP_BYTES) -> None:
        self._texts = texts
        self._seconds = seconds
        self._most = most

    async def find(self, key: str, body: str) -> KeptReply | None:
        """The reply to this request, if kept.

        Raises InvalidRequest if the key was used with another body, and TextsUnavailable.
        """
        select = "SELECT content FROM kept_replies WHERE key = ? AND ends_at > ?"
        found = await self._texts.run(lambda database: database.execute(select, (key, now(database))))
        if not found:
            return None
        try:
            kept = msgspec.msgpack.decode(self._texts.seal.open(bytes(found[0][0]), key), type=KeptReply)
        except (Unreadable, msgspec.DecodeError) as error:
            logger.error("A kept reply cannot be read: %s", error)
            return None
        if kept.body != body:
            raise InvalidRequest(
                "This Idempotency-Key was used for a different request.", code="idempotency_key_reused"
            )
        return kept

    async def keep(self, key: str, reply: KeptReply) -> None:
        """Keep a reply, unless it alone exceeds the limit; a failure is logged, since the reply was delivered."""
        content = self._texts.seal.close(msgspec.msgpack.encode(reply), key)
        try:
            await self._texts.run(partial(self._keep, key=key, content=content))
        except TextsUnavailable as error:
            logger.error("A reply is not kept for its Idempotency-Key: %s", error)

    def _keep(self, database: Database, key: str, content: bytes) -> None:
        size, moment = len(content) + OVERHEAD, now(database)
        if size <= self._most:
            database.execute(KEEP, (key, moment + self._seconds, size, content))
        database.execute("DELETE FROM kept_replies WHERE ends_at <= ?", (moment,))
        rows = database.execute(OLDEST)
        total = sum(size for _, size in rows)
        for name, size in rows:
            if total <= self._most:
                return
            total -= size
            database.execute("DELETE FROM kept_replies WHERE key = ?", (name,))


def idempotency_digest(header: str | None, skill: str, key_id: str) -> str | None:
    """The digest of a client's Idempotency-Key, apart from other skills' and API keys'; None without the header."""
    if header is None:
        return None
    if not 0 < len(header) <= LONGEST_KEY:
        raise InvalidRequest(f"Idempotency-Key must have 1 to {LONGEST_KEY} characters.", param="Idempotency-Key")
    return hashlib.sha256("\0".join((skill, key_id, header)).encode(errors="surrogateescape")).hexdigest()


def not_kept(known: Known) -> Conflict:
    """The error for a key that only the ledger knows: its reply is running, was cut short, or is no longer kept."""
    if known.outcome is None:
        return Conflict("The request with this Idempotency-Key is under way.", code="idempotency_key_in_use")
    usage = known.usage
    return Conflict(
        f"The request with this Idempotency-Key ended as {known.outcome!r} with {usage.prompt} prompt and "
        f"{usage.output} completion tokens; its text is not kept, and no new tokens were made.",
        code="idempotency_reply_gone",
    )
