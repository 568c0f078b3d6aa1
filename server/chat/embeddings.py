"""Embeddings of texts, metered as replies are: tokens are reserved, encoded, and settled before they are sent.

A row of the ledger has the tokens that the encoder read as its prompt, and no output.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import anyio
from msgspec import Struct

from server.chat.kept.idempotency import not_kept
from server.chat.reply import DRAIN_RETRY_SECONDS, Replies, budgets_of
from server.chat.worker import Worker
from server.errors import InvalidRequest, Overloaded
from server.metering.ledger.records import Opening, Usage
from server.metering.meter import Answered, Meter
from server.models.encoders import NamedEncoder
from server.skills.key_limits import Allowance
from server.skills.limits import RateLimits
from server.skills.skill import Skill

MOST_INPUTS = 2048
MOST_TOKENS = 1 << 17  # of one request: some seconds of one core for a small encoder
AT_ONCE = 16  # inputs that are encoded before another request has its turn
SHORT = 4096  # characters or ids of all inputs that are tokenised without a thread


class EmbeddingRequest(Struct, frozen=True):
    """Texts or token ids to encode for `skill`."""

    skill: Skill
    inputs: tuple[str | tuple[int, ...], ...]
    truncate: bool = False
    """Whether inputs that are too long are cut instead of refused."""
    most: int | None = None
    """Fewer tokens of each input to read; None: as many as the encoder can."""
    key_id: str = ""
    idempotency: str | None = None
    """Digest of the Idempotency-Key."""


class Embedded(NamedTuple):
    """The vectors of a request's inputs."""

    vectors: list[Any]
    """Arrays of float32 [dimension]."""
    tokens: int
    """Tokens that were read, special ones included."""
    headers: Mapping[str, str]
    """Rate-limit headers."""


class Embeddings:
    """Encodes texts in one thread, off the event loop, in turns of a few inputs; belongs to the asyncio loop."""

    def __init__(
        self,
        replies: Replies,
        meter: Meter,
        rate_limits: RateLimits,
        allowance: Callable[[str], Allowance],
    ) -> None:
        """`replies` says whether the server drains; `allowance` gives the limits of the API key with an id."""
        self._replies = replies
        self._meter = meter
        self._rate_limits = rate_limits
        self._allowance = allowance
        self._worker = Worker("embeddings")

    async def embed(self, request_id: str, request: EmbeddingRequest, named: NamedEncoder) -> Embedded:
        """Encode the inputs with `named`, within the limits and budgets of skill and key.

        Raises InvalidRequest, RateLimited, Overloaded, BudgetExceeded, LedgerUnavailable, or Conflict for a repeated
        Idempotency-Key: vectors are not kept.
        """
        if self._replies.draining:
            raise Overloaded("The server is shutting down.", retry_after=DRAIN_RETRY_SECONDS, reason="draining")
        self._replies.working += 1
        try:
            return await self._embed(request_id, request, named)
        finally:
            self._replies.working -= 1

    async def _embed(self, request_id: str, request: EmbeddingRequest, named: NamedEncoder) -> Embedded:
        """`embed`, while a drain waits for it."""
        key = self._allowance(request.key_id)
        entered = await self._rate_limits.enter(request.skill, key)
        try:
            rows = await self._rows(request, named)
            tokens = sum(len(row) + named.encoder.special_tokens for row in rows)
            headers = await self._rate_limits.spend(request.skill, key, tokens)
            vectors = await self._encode(opening_of(request_id, request, named, tokens, key), rows, named)
        finally:
            await self._rate_limits.leave(entered.lease)
        return Embedded(vectors, tokens, {**entered.headers, **headers})

    async def _rows(self, request: EmbeddingRequest, named: NamedEncoder) -> list[Sequence[int]]:
        """The token ids of each input."""
        if sum(map(len, request.inputs)) <= SHORT:
            return rows_of(request, named)
        return await self._worker.run(rows_of, request, named)

    async def _encode(self, opening: Opening, rows: Sequence[Sequence[int]], named: NamedEncoder) -> list[Any]:
        """The vectors of `rows`; opens the ledger's row, and settles it with the tokens that were encoded."""
        with anyio.CancelScope(shield=True):  # an opened row must reach its owner, to be closed
            try:
                reservation = await self._meter.admit(opening)
            except Answered as answered:
                raise not_kept(answered.known) from None
        done, vectors = 0, []
        outcome: Any = "error"
        try:
            for turn in turns_of(rows):
                vectors += list((await self._worker.run(named.encoder.encode, turn)).vectors)
                done += sum(len(row) + named.encoder.special_tokens for row in turn)
            outcome = "stop"
        finally:
            with anyio.CancelScope(shield=True):
                await reservation.settle(outcome if done else "rejected", computed=Usage(done))
        return vectors


def opening_of(request_id: str, request: EmbeddingRequest, named: NamedEncoder, tokens: int, key: Allowance) -> Opening:
    """The ledger's row of a request for embeddings of `tokens` tokens."""
    skill = request.skill
    return Opening(
        request_id,
        skill.name,
        named.name,
        tokens,
        limits=budgets_of(skill),
        revision=skill.revision,
        key_id=request.key_id,
        idempotency=request.idempotency,
        key_limits=budgets_of(key.limits),
        key_ids=key.ids,
        least=0,
    )


def turns_of(rows: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """The rows in groups that are encoded at once."""
    for start in range(0, len(rows), AT_ONCE):
        yield rows[start : start + AT_ONCE]


def rows_of(request: EmbeddingRequest, named: NamedEncoder) -> list[Sequence[int]]:
    """The token ids of each input, cut if allowed; raises InvalidRequest naming the input."""
    encoder, most = named.encoder, min(named.most, request.most or named.most)
    rows: list[Sequence[int]] = []
    total = 0
    for index, given in enumerate(request.inputs):
        place = f"input[{index}]" if len(request.inputs) > 1 else "input"
        ids = encoder.tokens(given) if isinstance(given, str) else given
        if not ids:
            raise InvalidRequest(f"The input is empty: `{place}`.", param=place)
        if max(ids) >= encoder.vocabulary:
            raise InvalidRequest(
                f"{max(ids)} is no token at `{place}`: the encoder's vocabulary has {encoder.vocabulary}. Send texts, "
                "or ids of its own tokenizer.",
                param=place,
            )
        if len(ids) > most and not request.truncate:
            raise InvalidRequest(
                f"This model's maximum context length is {named.most} tokens for an input, and `{place}` has "
                f"{len(ids)}. Split it, or set `truncate` to true.",
                param=place,
                code="context_length_exceeded",
                reason="context",
            )
        rows.append(ids[:most])
        total += len(rows[-1])
        if total > MOST_TOKENS:
            raise InvalidRequest(f"The inputs have more than {MOST_TOKENS} tokens: send fewer at once.", param="input")
    return rows
