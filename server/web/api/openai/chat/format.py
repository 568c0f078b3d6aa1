"""Replies as JSON in OpenAI's format: the chunks of a stream, and the whole.

One addition: a reply that the server ended has the finish_reason `length`, the nearest word of the protocol, and beside
the choices an `outcome`, `budget` or `server_shutdown`; the last chunk then has its usage even if not asked for.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from server.chat.logprobs import TokenLogprob
from server.engine.sequence import Finish
from server.metering.ledger.records import Outcome, Usage
from server.web.api.openai.chat.schema import ChatRequest


class CompletionFormat:
    """What all chunks of one response share: id, time, model, and whether logprobs and usage are included."""

    def __init__(self, wanted: ChatRequest, request_id: str, created: int) -> None:
        self.logprobs = wanted.logprobs
        self.include_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        self.head = {"id": f"chatcmpl-{request_id.removeprefix('req_')}", "created": created, "model": wanted.model}


class Ended(Protocol):
    """A reply that ended: a `Reply` or a `KeptReply`."""

    @property
    def usage(self) -> Usage:
        """Its tokens."""

    @property
    def finish(self) -> Finish | None:
        """OpenAI's finish_reason."""

    @property
    def ended_by_server(self) -> Outcome | None:
        """Why the server ended it, or None if the model or the caller did."""


def opening(form: CompletionFormat) -> str:
    """The first chunk, with the role and no text."""
    return chunk(form, {"role": "assistant", "content": "", "refusal": None})


def text_chunk(form: CompletionFormat, text: str, tokens: Sequence[TokenLogprob] = ()) -> str:
    """A chunk of text, with its tokens' logprobs if wanted."""
    return chunk(form, {"content": text}, logprobs=logprobs_of(tokens, form))


def ending(reply: Ended, form: CompletionFormat) -> list[str]:
    """The last chunks: the finish reason, then the usage if wanted."""
    more: dict[str, Any] = {}
    if reply.ended_by_server:
        more = {"outcome": reply.ended_by_server, "usage": usage(reply.usage)}
    if form.include_usage:
        more["usage"] = None
    events = [chunk(form, {}, reply.finish, more)]
    if form.include_usage:
        head = {**form.head, "object": "chat.completion.chunk"}
        events.append(encode({**head, "choices": [], "usage": usage(reply.usage)}))
    return events


def chunk(
    form: CompletionFormat,
    delta: dict[str, Any],
    finish: str | None = None,
    more: dict[str, Any] | None = None,
    logprobs: dict[str, Any] | None = None,
) -> str:
    """One chunk; `more` adds fields beside the choices."""
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    extra = {"usage": None} if form.include_usage else {}
    return encode({**form.head, "object": "chat.completion.chunk", "choices": [choice], **extra, **(more or {})})


def logprobs_of(tokens: Sequence[TokenLogprob], form: CompletionFormat) -> dict[str, Any] | None:
    """OpenAI's `logprobs` object, or None if not wanted."""
    return {"content": tokens, "refusal": None} if form.logprobs else None


def complete(text: str, tokens: Sequence[TokenLogprob], reply: Ended, form: CompletionFormat) -> str:
    """The whole response."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": logprobs_of(tokens, form), "finish_reason": reply.finish}
    more = {"outcome": reply.ended_by_server} if reply.ended_by_server else {}
    body = {**form.head, "object": "chat.completion", "choices": [choice], "usage": usage(reply.usage), **more}
    return encode(body)


def usage(tokens: Usage) -> dict[str, Any]:
    """OpenAI's `usage` object, from the ledger's counts."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }


def encode(value: dict[str, Any]) -> str:
    """Compact JSON."""
    return msgspec.json.encode(value).decode()
