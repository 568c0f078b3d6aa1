"""vLLM's token protocol: `/inference/v1/generate` streams token ids, `/inference/v1/abort_requests` ends a request.

Only ids that arrived are sampled ids: they are counted, and nothing that a backend computed beyond them. A grammar is
handed on as Lark for vLLM's guidance backend, and every id that arrives is checked against it here.
"""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from msgspec import Struct

from server.engine.remote.backends import Backend
from server.engine.remote.http_stream import Broken, RefusedByBackend, events, post
from server.engine.remote.wire import DONE, Sizes, check_prompt, decoded, next_event, refuse
from server.engine.sequence import Logprobs, Sequence
from server.engine.stream import Stream, Token
from server.errors import EngineFailed, InvalidRequest

GENERATE = "/inference/v1/generate"
ABORT = "/inference/v1/abort_requests"
PREFIX = "generate-tokens-"
"""Begins the name by which vLLM knows a request of GENERATE."""
GUIDANCE = "--structured-outputs-config.backend guidance"
logger = logging.getLogger(__name__)


class Scored(Struct, frozen=True):
    """A candidate at a position."""

    token_id: int
    logprob: float


class Position(Scored, frozen=True):
    """The sampled id and the most likely ones, in no fixed order."""

    top_logprobs: tuple[Scored, ...] = ()


class Content(Struct, frozen=True):
    """The log probabilities of a chunk's ids."""

    content: tuple[Position, ...] | None = None


class ChunkChoice(Struct, frozen=True):
    """What a chunk adds to the reply."""

    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    logprobs: Content | None = None


class Chunk(Struct, frozen=True):
    """One event of the stream."""

    choices: tuple[ChunkChoice, ...] = ()
    error: msgspec.Raw | None = None


CHUNK = msgspec.json.Decoder(Chunk)


class TokenProtocol:
    """Sends token ids and reads token ids."""

    text = False

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._aborting: set[asyncio.Task[None]] = set()

    def check(self, sequence: Sequence) -> None:
        """Raise InvalidRequest for a sequence that a backend can never serve; drops stop ids that the model lacks."""
        check_prompt(sequence, self._sizes)
        sampling, vocabulary = sequence.sampling, self._sizes.vocabulary
        refuse(
            {"prompt_logprobs": sampling.prompt_logprobs is not None, "max_tokens of 0": sampling.max_tokens == 0},
            "a remote engine",
        )
        named = {"logit_bias": [id for id, _ in sampling.logit_bias], "stop_token_ids": sampling.stop_token_ids}
        for option, ids in named.items():
            if max(ids, default=0) >= vocabulary:
                raise InvalidRequest(
                    f"{option} contains token {max(ids)}; the model's vocabulary has {vocabulary} tokens.", param=option
                )
        known = frozenset(id for id in sampling.stop_ids if id < vocabulary)
        sequence.sampling = msgspec.structs.replace(sampling, stop_ids=known)

    def prefix(self, sequence: Sequence) -> str:
        """The salt of the backend's prefix cache."""
        return salt_of(sequence, alone=not self._sizes.share_prefixes)

    async def deliver(self, backend: Backend, sequence: Sequence, stream: Stream) -> None:
        """Put the ids that one backend samples; raises Broken and RefusedByBackend."""
        if constraint := sequence.sampling.constraint:
            await asyncio.to_thread(getattr, constraint, "lark")  # a long grammar's text takes tens of milliseconds
            sequence.constraint = constraint.begin()
        name, body = request_of(sequence, self._sizes.model, self.prefix(sequence))
        try:
            await self._read(events(backend.target, GENERATE, body), sequence, stream)
        except RefusedByBackend as refused:
            if refused.status == 400 and sequence.constraint:
                raise _grammar_refused() from None
            raise
        except BaseException:  # also when its reader leaves
            self._soon(_abort_at(backend, name))
            raise

    async def _read(self, data: AsyncGenerator[bytes, None], sequence: Sequence, stream: Stream) -> None:
        """Put the ids of a response's events until the reply ends."""
        async with aclosing(data):
            while not sequence.finish:
                seconds = self._sizes.token_seconds if sequence.generated else self._sizes.first_token_seconds
                if (event := await next_event(data, seconds)) == DONE:
                    raise Broken("its reply ended without a reason")
                chunk = decoded(event, CHUNK, "the token protocol")
                if chunk.error is not None:
                    raise Broken("it reported an error")
                if chunk.choices and (tokens := appended(sequence, chunk.choices[0])):
                    stream.put(tokens)

    def _soon(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._aborting.add(task)
        task.add_done_callback(self._aborting.discard)


async def _abort_at(backend: Backend, name: str) -> None:
    """End a request; the closed connection does too, unless a proxy holds it open."""
    with suppress(Broken, RefusedByBackend):
        await post(backend.target, ABORT, abort_of(name))


def appended(sequence: Sequence, choice: ChunkChoice) -> list[Token]:
    """Append the ids of a chunk up to the end of the reply; raises Broken for what no reply may have."""
    tokens = []
    scores = logprobs_of(choice, sequence.sampling.logprobs)
    if len(scores) != len(choice.token_ids or ()):
        raise Broken("its log probabilities are not those of its tokens")
    for id, score in zip(choice.token_ids or (), scores, strict=True):
        _check_grammar(sequence, id)
        sequence.append(id)
        tokens.append(Token(id, sequence.finish, score, sequence.complete))
        if sequence.finish:
            return tokens
    if choice.finish_reason in ("stop", "length", "repetition"):  # sooner than asked, as with a shorter context
        sequence.finish = "length"
        if tokens:
            return [*tokens[:-1], tokens[-1]._replace(finish="length")]
        raise Broken(f"its reply ended as {choice.finish_reason}, sooner than asked")
    if choice.finish_reason is not None:
        raise Broken(f"its reply ended as {choice.finish_reason}")
    return tokens


def _check_grammar(sequence: Sequence, id: int) -> None:
    """Raise EngineFailed for an id that the reply's grammar does not allow, so that none is delivered."""
    if sequence.constraint and not sequence.constraint.fits(id):
        logger.error("A backend sampled against a grammar: start vLLM with %s", GUIDANCE)
        raise EngineFailed("The model's backend left the reply's grammar; the reply ends there.")


def _grammar_refused() -> InvalidRequest:
    return InvalidRequest(
        "The model's backend does not support this grammar, schema or regular expression: simplify it.",
        param="response_format",
        code="unsupported_by_engine",
    )


def request_of(sequence: Sequence, model: str, salt: str) -> tuple[str, bytes]:
    """A new id for the request, and its body; `salt` divides the backend's prefix cache."""
    sampling, name = sequence.sampling, secrets.token_hex(16)
    wanted: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": sorted(sampling.stop_ids),
        "ignore_eos": True,  # the model's own stop ids are among the others, unless the caller ignores them
        "detokenize": False,
    }
    if sampling.logit_bias:
        wanted["logit_bias"] = {str(id): bias for id, bias in sampling.logit_bias}
    if sampling.seed is not None:
        wanted["seed"] = sampling.seed
    if sampling.logprobs is not None:
        wanted["logprobs"] = sampling.logprobs
    if sampling.constraint is not None:
        wanted["structured_outputs"] = {"grammar": sampling.constraint.lark}
    body = {
        "request_id": name,
        "model": model,
        "token_ids": sequence.prompt,
        "sampling_params": wanted,
        "stream": True,
        "cache_salt": salt,
    }
    return name, msgspec.json.encode(body)


def abort_of(request: str) -> bytes:
    """The body that ends a request."""
    return msgspec.json.encode({"request_ids": [request, PREFIX + request]})


def salt_of(sequence: Sequence, *, alone: bool) -> str:
    """The salt of a skill's cached prompts, or of one caller's `alone`; tells nothing of either."""
    parts = [sequence.skill, sequence.cache_salt] if alone else [sequence.skill]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def logprobs_of(choice: ChunkChoice, most: int | None) -> list[Logprobs | None]:
    """The log probabilities of each id of a chunk, with the `most` likely ids; None for each if none are wanted."""
    ids = choice.token_ids or ()
    content = choice.logprobs.content if choice.logprobs else None
    if most is None or content is None:
        return [None] * len(ids)
    return [_logprobs(position, most) for position in content]


def _logprobs(position: Position, most: int) -> Logprobs:
    known: Mapping[int, float] = {one.token_id: one.logprob for one in (*position.top_logprobs, position)}
    ordered = sorted(known.items(), key=lambda one: (-one[1], one[0]))
    return Logprobs(position.logprob, tuple(ordered[:most]))
