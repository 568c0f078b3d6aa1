"""Replies as JSON in the format of chat completions: the chunks of a stream, and the whole.

One addition: a reply that the server ended has the finish_reason `length`, the nearest word of the protocol, and beside
the choices an `outcome`, `budget` or `server_shutdown`; the last chunk then has its usage even if not asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from sse_starlette.event import ServerSentEvent

from server.chat.idempotent_replies import Origin
from server.chat.choices.logprobs import TokenLogprob
from server.chat.choices.reply_text import Piece
from server.errors import SecateurError
from server.metering.ledger.records import Usage
from server.web.api.reply_endpoint import Ended
from server.web.http import problems
from server.web.http.events import event

DONE = "[DONE]"


class CompletionFormat:
    """Writes one response; all its chunks share id, time and model."""

    def __init__(self, origin: Origin, model: str, *, logprobs: bool, include_usage: bool) -> None:
        self._logprobs = logprobs
        self._include_usage = include_usage
        id = f"chatcmpl-{origin.request_id.removeprefix('req_')}"
        self._head = {"id": id, "created": origin.created, "model": model}

    def opening(self, prompt: int) -> Iterator[ServerSentEvent]:
        """The first chunk, with the role and no text."""
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})

    def piece(self, piece: Piece) -> Iterator[ServerSentEvent]:
        """A chunk of text, with its tokens' logprobs if wanted."""
        yield self._chunk({"content": piece.text}, logprobs=self._logprobs_of(piece.logprobs))

    def ending(self, reply: Ended) -> Iterator[ServerSentEvent]:
        """The last chunks: the finish reason, the usage if wanted, and [DONE]."""
        more: dict[str, Any] = {}
        if reply.ended_by_server:
            more = {"outcome": reply.ended_by_server, "usage": usage(reply.usage)}
        if self._include_usage:
            more["usage"] = None
        yield self._chunk({}, reply.finish, more)
        if self._include_usage:
            head = {**self._head, "object": "chat.completion.chunk"}
            yield event(encode({**head, "choices": [], "usage": usage(reply.usage)}))
        yield event(DONE)

    def failure(self, error: SecateurError) -> Iterator[ServerSentEvent]:
        """The error's body; no [DONE] follows."""
        yield event(encode(problems.body(error)))

    def whole(self, piece: Piece, reply: Ended) -> str:
        """The whole response."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        logprobs = self._logprobs_of(piece.logprobs)
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reply.finish}
        more = {"outcome": reply.ended_by_server} if reply.ended_by_server else {}
        head = {**self._head, "object": "chat.completion"}
        return encode({**head, "choices": [choice], "usage": usage(reply.usage), **more})

    def _chunk(
        self,
        delta: dict[str, Any],
        finish: str | None = None,
        more: dict[str, Any] | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> ServerSentEvent:
        """One chunk; `more` adds fields beside the choices."""
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        extra = {"usage": None} if self._include_usage else {}
        head = {**self._head, "object": "chat.completion.chunk"}
        return event(encode({**head, "choices": [choice], **extra, **(more or {})}))

    def _logprobs_of(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """OpenAI's `logprobs` object, or None if not wanted."""
        return {"content": tokens, "refusal": None} if self._logprobs else None


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
