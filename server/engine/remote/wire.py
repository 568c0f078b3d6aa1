"""What a remote engine needs of a backend's protocol, and the sizes that both use."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Protocol, TypeVar

import msgspec
from msgspec import Struct

from server.engine.remote.backends import Backend
from server.engine.remote.http_stream import Broken
from server.engine.sequence import Sequence, check
from server.engine.stream import Stream
from server.errors import InvalidRequest

DONE = b"[DONE]"
T = TypeVar("T")


class Sizes(Struct, frozen=True):
    """What a remote engine serves, and how long it waits."""

    model: str
    """The backends' name of the model."""
    context: int
    vocabulary: int
    replies: int = 64
    """Sequences at once, over all backends."""
    max_waiting: int = 64
    first_token_seconds: float = 60.0
    token_seconds: float = 30.0
    """The longest silence between tokens."""
    share_prefixes: bool = False
    """Whether callers of a skill share the backends' prefix cache."""


class WireProtocol(Protocol):
    """How sequences travel to a backend, and replies back."""

    text: bool
    """Whether replies are text without ids, whose usage the backend reports."""

    def check(self, sequence: Sequence) -> None:
        """Raise InvalidRequest for what this protocol cannot carry."""

    def prefix(self, sequence: Sequence) -> str:
        """What decides which backend has the sequence's beginning in its cache."""

    async def deliver(self, backend: Backend, sequence: Sequence, stream: Stream) -> None:
        """Put what the backend generates on the stream until the reply ends; raises Broken and RefusedByBackend."""


async def next_event(data: AsyncGenerator[bytes, None], seconds: float) -> bytes:
    """The next event of a response, or DONE at its end; raises Broken after `seconds` of silence."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(data, DONE)
    except TimeoutError:
        raise Broken(f"no token within {seconds:g} s") from None


def decoded(event: bytes, decoder: msgspec.json.Decoder[T], protocol: str) -> T:
    """An event as a chunk; raises Broken for anything else."""
    try:
        return decoder.decode(event)
    except msgspec.DecodeError:
        raise Broken(f"its events are not those of {protocol}") from None


def refuse(options: dict[str, bool], what: str) -> None:
    """Raise InvalidRequest for the first option that is used, which `what` does not support."""
    for option, used in options.items():
        if used:
            raise InvalidRequest(
                f"This skill's model runs on {what}, which does not support {option}: leave it out.",
                param=option.split()[0].rstrip(","),
                code="unsupported_by_engine",
            )


def check_prompt(sequence: Sequence, sizes: Sizes) -> None:
    """Raise InvalidRequest for a prompt that can never be served."""
    check(len(sequence.prompt), sequence.sampling, sizes.context)
    if (highest := max(sequence.prompt)) >= sizes.vocabulary:
        raise InvalidRequest(
            f"The messages contain token {highest}; the model's vocabulary has {sizes.vocabulary} tokens.",
            param="messages",
        )
