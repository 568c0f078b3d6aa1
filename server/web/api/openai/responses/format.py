"""Replies in the format of OpenAI's Responses API: numbered events with names, and the whole response.

One addition: a reply that the server ended is `incomplete` with the reason `max_output_tokens`, the nearest word of the
protocol, and has an `outcome` beside it, `budget` or `server_shutdown`.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field
from sse_starlette.event import ServerSentEvent

from server.chat.choices.logprobs import TokenLogprob
from server.chat.choices.reply_text import Piece
from server.chat.kept.idempotent_replies import Origin
from server.chat.tools.calls import CallPart
from server.errors import SecateurError
from server.knowledge.grounding.citations import Citation
from server.metering.ledger.records import Usage
from server.web.api.openai.responses.output import Call, Item, Output, Text, written
from server.web.api.reply_endpoint import Ended
from server.web.http import problems


class Echo(Struct, frozen=True, kw_only=True):
    """What a response repeats of its request."""

    model: str
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    temperature: float | None
    top_p: float | None
    top_logprobs: int
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    prompt_cache_key: str | None
    user: str | None
    background: bool = False
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: dict[str, Any] = field(default_factory=lambda: {"effort": None, "summary": None})
    service_tier: str = "default"
    store: bool = False
    truncation: str = "disabled"


class ResponseFormat:
    """Writes one response; counts its events."""

    def __init__(self, origin: Origin, echo: Echo, *, logprobs: bool) -> None:
        self._hex = origin.request_id.removeprefix("req_")
        self._created = origin.created
        self._echo = msgspec.to_builtins(echo)
        self._logprobs = logprobs
        self._number = 0
        self._output = Output(self._hex)

    def opening(self, prompt: int) -> Iterator[ServerSentEvent]:
        """The empty response, twice: created, and in progress."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", {"response": self._response("in_progress")})

    def piece(self, piece: Piece) -> Iterator[ServerSentEvent]:
        """The text and the calls of a piece; each kind begins an item of its own."""
        if piece.text or (piece.logprobs and self._logprobs and not piece.calls):
            yield from self._text(piece.text, piece.logprobs)
        for part in piece.calls:
            yield from self._call(part)
        for citation in piece.citations:
            yield from self._cite(citation)

    def ending(self, reply: Ended) -> Iterator[ServerSentEvent]:
        """The end of the last item, and the whole response."""
        if not self._output.items:
            yield from self._text("", ())
        status = "incomplete" if reply.finish == "length" else "completed"
        yield from self._close(status)
        yield self._event(f"response.{status}", {"response": self._finished(reply)})

    def failure(self, error: SecateurError) -> Iterator[ServerSentEvent]:
        """The error, and the failed response."""
        told = problems.body(error)["error"]
        yield self._event("error", {name: told[name] for name in ("code", "message", "param")})
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        failed = {**self._response("failed"), "error": {"code": code, "message": told["message"]}}
        yield self._event("response.failed", {"response": failed})

    def whole(self, piece: Piece, reply: Ended) -> str:
        """The whole response."""
        for _ in (*self.piece(piece), *self.ending(reply)):
            pass
        return msgspec.json.encode(self._finished(reply)).decode()

    def _text(self, text: str, logprobs: Sequence[TokenLogprob]) -> Iterator[ServerSentEvent]:
        """Text of the message, which begins here unless it has begun."""
        item = self._output.last
        if not isinstance(item, Text):
            yield from self._close("completed")
            item = self._output.begin_text()
            yield self._item_event("added", item, "in_progress")
            yield self._part_event("response.content_part.added", item, {"part": item.part})
        shown = tuple(logprobs) if self._logprobs else ()
        item.add(text, shown)
        if text or shown:
            delta = {"delta": text, "logprobs": written(shown)}
            yield self._part_event("response.output_text.delta", item, delta)

    def _call(self, part: CallPart) -> Iterator[ServerSentEvent]:
        """A part of a call: its first begins an item."""
        if part.name:
            yield from self._close("completed")
            yield self._item_event("added", self._output.begin_call(part.id, part.name), "in_progress")
        item = self._output.last
        if part.arguments and isinstance(item, Call):
            item.arguments += part.arguments
            place = {"item_id": item.id, "output_index": item.index}
            yield self._event("response.function_call_arguments.delta", {**place, "delta": part.arguments})

    def _cite(self, citation: Citation) -> Iterator[ServerSentEvent]:
        """A passage that supports the message."""
        item = self._output.last
        if isinstance(item, Text):
            added = {"annotation_index": len(item.annotations), "annotation": item.cite(citation)}
            yield self._part_event("response.output_text.annotation.added", item, added)

    def _close(self, status: str) -> Iterator[ServerSentEvent]:
        """End the item that is open, if there is one."""
        item = self._output.close(status)
        if isinstance(item, Text):
            done = {"text": item.text, "logprobs": written(item.logprobs)}
            yield self._part_event("response.output_text.done", item, done)
            yield self._part_event("response.content_part.done", item, {"part": item.part})
        elif isinstance(item, Call):
            place = {"item_id": item.id, "output_index": item.index}
            yield self._event("response.function_call_arguments.done", {**place, "arguments": item.arguments})
        if item is not None:
            yield self._item_event("done", item, status)

    def _item_event(self, what: str, item: Item, status: str) -> ServerSentEvent:
        fields = {"output_index": item.index, "item": item.written(status)}
        return self._event(f"response.output_item.{what}", fields)

    def _part_event(self, kind: str, item: Text, fields: dict[str, Any]) -> ServerSentEvent:
        place = {"item_id": item.id, "output_index": item.index, "content_index": 0}
        return self._event(kind, {**place, **fields})

    def _event(self, kind: str, fields: dict[str, Any]) -> ServerSentEvent:
        """The next event, named and numbered."""
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return ServerSentEvent(msgspec.json.encode(data).decode(), event=kind, sep="\n")

    def _finished(self, reply: Ended) -> dict[str, Any]:
        """The response of a reply that ended."""
        cut = reply.finish == "length"
        body = self._response("incomplete" if cut else "completed")
        body["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        body["completed_at"] = None if cut else max(self._created, int(time.time()))
        body["usage"] = usage(reply.usage)
        if reply.ended_by_server:
            body["outcome"] = reply.ended_by_server
        return body

    def _response(self, status: str) -> dict[str, Any]:
        """The response so far."""
        return {
            "id": f"resp_{self._hex}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "output": [item.written(item.status) for item in self._output.items],
            **self._echo,
            "usage": None,
        }


def usage(tokens: Usage) -> dict[str, Any]:
    """The `usage` of a response, from the ledger's counts; cached prompts cost no writing."""
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens.prompt + tokens.output,
    }
