"""vLLM's token protocol: `/inference/v1/generate` streams token ids, `/inference/v1/abort_requests` ends a request."""

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from server.engine.sequence import Logprobs, Sequence

GENERATE = "/inference/v1/generate"
ABORT = "/inference/v1/abort_requests"
PREFIX = "generate-tokens-"
"""Begins the name by which vLLM knows a request of GENERATE."""
DONE = b"[DONE]"


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
