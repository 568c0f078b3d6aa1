"""A reply in OpenAI's format: the chunks of a stream and the whole; knows neither requests nor the engine.

One addition: where the server ended a reply, the finish_reason is `length`, since the protocol knows no better word,
and a field `outcome` beside the choices says `budget` or `server_shutdown`; its usage is told whether asked for or not.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from server.chat.logprobs import TokenLogprob
from server.engine.sequence import Finish
from server.metering.ledger.records import Outcome, Usage
from server.web.api.schema import ChatRequest


class Form:
    """How one request is answered: what all its chunks have in common, and whether they come as a stream."""

    def __init__(self, wanted: ChatRequest, request_id: str, created: int) -> None:
        self.created = created
        self.stream = wanted.stream
        self.logprobs = wanted.logprobs
        self.include_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        self.head = {"id": f"chatcmpl-{request_id.removeprefix('req_')}", "created": created, "model": wanted.model}


class Ended(Protocol):
    """What is told of a reply that ended."""

    @property
    def usage(self) -> Usage:
        """Its tokens."""

    @property
    def finish(self) -> Finish | None:
        """Why it ended, in OpenAI's words."""

    @property
    def ended_by_server(self) -> Outcome | None:
        """Why the server ended it, or None."""


def opening(form: Form) -> str:
    """The first chunk."""
    return chunk(form, {"role": "assistant", "content": "", "refusal": None})


def text_chunk(form: Form, text: str, scores: Sequence[TokenLogprob] = ()) -> str:
    """A piece of text, with its tokens' scores where they are wanted."""
    return chunk(form, {"content": text}, scores=logprobs(form, scores))


def ending(reply: Ended, form: Form) -> list[str]:
    """The chunk with the finish reason, and the usage where it is wanted or the server ended the reply."""
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
    form: Form,
    delta: dict[str, Any],
    finish: str | None = None,
    more: dict[str, Any] | None = None,
    scores: dict[str, Any] | None = None,
) -> str:
    """One event of a stream."""
    choice = {"index": 0, "delta": delta, "logprobs": scores, "finish_reason": finish}
    extra = {"usage": None} if form.include_usage else {}
    return encode({**form.head, "object": "chat.completion.chunk", "choices": [choice], **extra, **(more or {})})


def logprobs(form: Form, scores: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """What OpenAI's field of that name holds."""
    return {"content": scores, "refusal": None} if form.logprobs else None


def complete(text: str, scores: Sequence[TokenLogprob], reply: Ended, form: Form) -> str:
    """The answer in one piece."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": logprobs(form, scores), "finish_reason": reply.finish}
    more = {"outcome": reply.ended_by_server} if reply.ended_by_server else {}
    body = {**form.head, "object": "chat.completion", "choices": [choice], "usage": usage(reply.usage), **more}
    return encode(body)


def usage(tokens: Usage) -> dict[str, Any]:
    """OpenAI's usage object, from the same counts that the ledger has."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }


def encode(value: dict[str, Any]) -> str:
    """Compact JSON."""
    return msgspec.json.encode(value).decode()
