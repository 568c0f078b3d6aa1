"""Replies kept under their Idempotency-Key: a repeated request gets the same reply without generating it again.

In memory, bounded in bytes and time. The ledger keeps no text; for a reply no longer kept it knows only how it ended.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from server.chat.choices.finished import FinishedChoice, FinishedReply
from server.errors import Conflict, InvalidRequest
from server.metering.ledger.records import Known

KEEP_SECONDS = 3600.0
KEEP_BYTES = 16 << 20
OVERHEAD = 512  # bytes of an entry beside its text
LOGPROB_BYTES = 512  # of one token or alternative
ID_BYTES = 40
LONGEST_KEY = 255


class KeptReply(Struct, frozen=True):
    """A finished reply."""

    body: str
    """SHA-256 of the request's body."""
    request_id: str
    created: int
    """Seconds since 1970."""
    reply: FinishedReply


class KeptReplies:
    """Finished replies by `idempotency_digest`; the oldest are dropped beyond `most` bytes or after `seconds`.

    Belongs to the asyncio loop; `clock` is monotonic.
    """

    def __init__(
        self, *, seconds: float = KEEP_SECONDS, most: int = KEEP_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, KeptReply]] = OrderedDict()
        self._size = 0

    def find(self, key: str, body: str) -> KeptReply | None:
        """The reply to this request, if kept; raises InvalidRequest if the key was used with another body."""
        self._expire()
        _, kept = self._kept.get(key, (0.0, None))
        if kept is not None and kept.body != body:
            raise InvalidRequest(
                "This Idempotency-Key was used for a different request.", code="idempotency_key_reused"
            )
        return kept

    def keep(self, key: str, reply: KeptReply) -> None:
        """Keep a reply, unless it alone exceeds the limit."""
        if key not in self._kept and _size(reply) <= self._most:
            self._kept[key] = (self._clock() + self._seconds, reply)
            self._size += _size(reply)
        self._expire()

    def _expire(self) -> None:
        now = self._clock()
        while self._kept:
            ends, reply = next(iter(self._kept.values()))
            if ends > now and self._size <= self._most:
                break
            self._kept.popitem(last=False)
            self._size -= _size(reply)


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


def _size(kept: KeptReply) -> int:
    return OVERHEAD + sum(_size_of_choice(choice) for choice in kept.reply.choices)


def _size_of_choice(choice: FinishedChoice) -> int:
    entries = sum(1 + len(token.top_logprobs) for token in choice.logprobs)
    prompt = choice.prompt
    if prompt is not None:
        entries += sum(1 + len(token.top) for token in prompt.tokens)
    texts = len(choice.text) + (len(prompt.text) if prompt else 0)
    ids = len(choice.ids) + (len(prompt.ids) if prompt else 0)
    return texts * 4 + ids * ID_BYTES + entries * LOGPROB_BYTES
