"""OpenAI's chat completions, for backends without token ids: messages go out, text comes back.

The backend renders and counts: its usage is what the reply is charged. Where it reports none, as when a reply is cut
here, each piece of text counts as a token and the prompt as the model's own tokenizer divides it.
"""

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Any, Literal

import msgspec
from msgspec import Struct

from server.engine.remote.backends import Backend
from server.engine.remote.http_stream import Broken, events
from server.engine.remote.wire import DONE, Sizes, check_prompt, decoded, next_event, refuse
from server.engine.sequence import NO_ID, Finish, Reported, Sequence
from server.engine.stream import Stream, Token

CHAT = "/v1/chat/completions"
Extra = Literal[
    "top_k", "min_p", "repetition_penalty", "repeat_penalty", "min_tokens", "seed",
    "max_completion_tokens", "continuous_usage_stats",
]  # fmt: skip
"""Fields that only some backends take."""
SOURCES = {"repeat_penalty": "repetition_penalty"}
"""Another name of a field -> our option."""


class Details(Struct, frozen=True):
    """Parts of a prompt's tokens."""

    cached_tokens: int | None = None


class BackendUsage(Struct, frozen=True):
    """Tokens as the backend counted them."""

    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None


class Delta(Struct, frozen=True):
    """What a chunk adds."""

    content: str | None = None


class ChunkChoice(Struct, frozen=True):
    """The reply's part of a chunk."""

    delta: Delta = Delta()
    finish_reason: str | None = None


class Chunk(Struct, frozen=True):
    """One event of the stream."""

    choices: tuple[ChunkChoice, ...] = ()
    usage: BackendUsage | None = None
    error: msgspec.Raw | None = None


CHUNK = msgspec.json.Decoder(Chunk)


class ChatProtocol:
    """Sends messages and reads text."""

    text = True

    def __init__(self, sizes: Sizes, extras: Collection[Extra] = ()) -> None:
        """`extras` are fields that the backends take."""
        self._sizes = sizes
        self._extras = frozenset(extras)

    def check(self, sequence: Sequence) -> None:
        """Raise InvalidRequest for an option that needs token ids, or that the backends are not said to take."""
        check_prompt(sequence, self._sizes)
        sampling, takes = sequence.sampling, {SOURCES.get(one, one) for one in self._extras}
        refuse(
            {
                "response_format, tools or another grammar": sampling.constraint is not None,
                "logprobs": sampling.logprobs is not None,
                "prompt_logprobs": sampling.prompt_logprobs is not None,
                "logit_bias": bool(sampling.logit_bias),
                "stop_token_ids": bool(sampling.stop_token_ids),
                "ignore_eos": sampling.ignore_eos,
                "max_tokens of 0": sampling.max_tokens == 0,
                "seed": sampling.seed is not None and "seed" not in takes,
                "min_tokens": bool(sampling.min_tokens) and "min_tokens" not in takes,
                "top_k": bool(sampling.top_k) and "top_k" not in takes,
                "min_p": bool(sampling.min_p) and "min_p" not in takes,
                "repetition_penalty": sampling.repetition_penalty != 1 and "repetition_penalty" not in takes,
            },
            "a chat backend",
        )

    def prefix(self, sequence: Sequence) -> str:
        """The skill: its prompts begin alike."""
        return sequence.skill

    async def deliver(self, backend: Backend, sequence: Sequence, stream: Stream) -> None:
        """Put the text that one backend writes, and its usage; raises Broken and RefusedByBackend."""
        sequence.reported = None  # perhaps another backend's, which failed after its usage
        finish: Finish | None = None
        async with aclosing(events(backend.target, CHAT, self._body(sequence))) as data:
            while chunk := await self._next(data, sequence, ended=finish is not None):
                if chunk.usage is not None:
                    sequence.reported = _reported(chunk.usage)
                more = any(choice.delta.content and choice.finish_reason is None for choice in chunk.choices)
                for choice in chunk.choices[:1]:
                    finish = finish or _put(choice, sequence, stream)
                if finish and (chunk.usage is not None or more):  # some write beyond `max_tokens`
                    break
        if finish is None:
            raise Broken("its reply ended without a reason")
        sequence.finish = finish
        stream.put([Token(NO_ID, finish, text="")])

    async def _next(self, data: AsyncGenerator[bytes, None], sequence: Sequence, *, ended: bool) -> Chunk | None:
        """The next chunk, or None at the end; raises Broken, unless the reply has `ended` and lacks only its usage."""
        sizes = self._sizes
        try:
            event = await next_event(data, sizes.token_seconds if sequence.generated else sizes.first_token_seconds)
            chunk = None if event == DONE else decoded(event, CHUNK, "OpenAI's chat completions")
            if chunk and chunk.error is not None:
                raise Broken("it reported an error")
        except Broken:
            if not ended:
                raise
            return None
        return chunk

    def _body(self, sequence: Sequence) -> bytes:
        sampling, extras = sequence.sampling, self._extras
        most = "max_completion_tokens" if "max_completion_tokens" in extras else "max_tokens"
        options: dict[str, Any] = {"include_usage": True}
        if "continuous_usage_stats" in extras:
            options["continuous_usage_stats"] = True
        body: dict[str, Any] = {
            "model": self._sizes.model,
            "messages": sequence.messages,
            most: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": True,
            "stream_options": options,
        }
        for penalty in ("frequency_penalty", "presence_penalty"):
            if value := getattr(sampling, penalty):
                body[penalty] = value
        # Neutral values too: a backend's own defaults are others.
        for name in sorted(extras - {"max_completion_tokens", "continuous_usage_stats"}):
            if (value := getattr(sampling, SOURCES.get(name, name))) is not None:
                body[name] = value
        return msgspec.json.encode(body)


def _put(choice: ChunkChoice, sequence: Sequence, stream: Stream) -> Finish | None:
    """Put a piece of text, unless the reply has all its tokens; returns why the reply ends with it."""
    if choice.delta.content:
        if sequence.generated >= sequence.sampling.max_tokens:
            return "length"
        sequence.tokens.append(NO_ID)
        stream.put([Token(NO_ID, None, text=choice.delta.content)])
    if choice.finish_reason is None:
        return None
    return "length" if choice.finish_reason == "length" else "stop"


def _reported(usage: BackendUsage) -> Reported:
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    return Reported(usage.prompt_tokens, min(cached, usage.prompt_tokens), usage.completion_tokens)
