"""Replies kept for a while under their Idempotency-Key: a repeated request gets the same one, without new tokens.

In memory, bounded in bytes and in time: the ledger holds no text, so it can only say how a forgotten reply ended.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from server.chat.logprobs import Scored
from server.engine.sequence import Finish
from server.errors import Conflict, InvalidRequest
from server.metering.ledger.records import Known, Outcome, Usage

KEEP_SECONDS = 3600.0
KEEP_BYTES = 16 << 20
OVERHEAD = 512  # bytes of an entry beside its text
SCORE = 512  # bytes of a token's score, or of one alternative
LONGEST_KEY = 255


class Kept(Struct, frozen=True):
    """A whole reply; `created` is a time in seconds since 1970."""

    body: str
    """SHA-256 of the request that it answers."""
    request_id: str
    created: int
    text: str
    finish: Finish
    ended_by_server: Outcome | None
    usage: Usage
    scores: tuple[Scored, ...] = ()


class Replays:
    """The kept replies; belongs to the asyncio loop. `clock` is monotonic."""

    def __init__(
        self, *, seconds: float = KEEP_SECONDS, most: int = KEEP_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, Kept]] = OrderedDict()
        self._size = 0

    def find(self, key: str, body: str) -> Kept | None:
        """The reply to this very request; raises InvalidRequest if the key was used for another one."""
        self._expire()
        _, kept = self._kept.get(key, (0.0, None))
        if kept is not None and kept.body != body:
            raise InvalidRequest(
                "This Idempotency-Key was used for a different request.", code="idempotency_key_reused"
            )
        return kept

    def keep(self, key: str, reply: Kept) -> None:
        """Keep a reply until it is too old or there are too many."""
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


def key_of(header: str | None, skill: str, who: str) -> str | None:
    """What the ledger and `Replays` know a client's Idempotency-Key by: a digest, other clients' keys apart."""
    if header is None:
        return None
    if not 0 < len(header) <= LONGEST_KEY:
        raise InvalidRequest(f"Idempotency-Key must have 1 to {LONGEST_KEY} characters.", param="Idempotency-Key")
    return hashlib.sha256("\0".join((skill, who, header)).encode(errors="surrogateescape")).hexdigest()


def forgotten(known: Known) -> Conflict:
    """For a key that the ledger knows and `Replays` does not: under way, cut short, or too long ago."""
    if known.outcome is None:
        return Conflict("The request with this Idempotency-Key is under way.", code="idempotency_key_in_use")
    usage = known.usage
    return Conflict(
        f"The request with this Idempotency-Key ended as {known.outcome!r} with {usage.prompt} prompt and "
        f"{usage.output} completion tokens; its text is not kept, and no new tokens were made.",
        code="idempotency_reply_gone",
    )


def _size(reply: Kept) -> int:
    scores = sum(1 + len(score.top_logprobs) for score in reply.scores)
    return len(reply.text) * 4 + scores * SCORE + OVERHEAD
