"""Replies in the format of Anthropic's messages: named events of content blocks, and the whole message.

One addition: a reply that the server ended has the stop_reason `max_tokens`, the nearest word of the protocol, and an
`outcome` beside it, `budget` or `server_shutdown`.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from sse_starlette.event import ServerSentEvent

from server.chat.choices.reply_text import Piece
from server.chat.kept.idempotent_replies import Origin
from server.chat.tools.calls import CallPart
from server.errors import SecateurError
from server.metering.ledger.records import Usage
from server.web.api.anthropic.errors import error_body
from server.web.api.reply_endpoint import Ended


class MessageFormat:
    """Writes one message; gathers its content blocks."""

    def __init__(self, origin: Origin, model: str) -> None:
        self._id = f"msg_{origin.request_id.removeprefix('req_')}"
        self._model = model
        self._blocks: list[dict[str, Any]] = []
        self._open = False
        self._called = False
        self._stop_sequence: str | None = None

    def opening(self, prompt: int) -> Iterator[ServerSentEvent]:
        """The message without content, with its prompt's tokens."""
        head = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None}
        yield written("message_start", {"message": {**head, "usage": usage(Usage(prompt))}})

    def piece(self, piece: Piece) -> Iterator[ServerSentEvent]:
        """The text and the calls of a piece; each kind begins a block of its own."""
        self._stop_sequence = piece.stop
        if piece.text:
            yield from self._text(piece.text)
        for part in piece.calls:
            yield from self._call(part)

    def ending(self, reply: Ended) -> Iterator[ServerSentEvent]:
        """The end of the last block, why the reply ended, and its tokens."""
        if not self._blocks:
            yield from self._text("")
        yield from self._close()
        yield written("message_delta", {"delta": self._stop(reply), "usage": usage(reply.usage)})
        yield written("message_stop", {})

    def failure(self, error: SecateurError) -> Iterator[ServerSentEvent]:
        """The error; nothing follows."""
        body = error_body(error)
        yield written("error", {"error": body["error"]})

    def whole(self, piece: Piece, reply: Ended) -> str:
        """The whole message."""
        for _ in (*self.piece(piece), *self.ending(reply)):
            pass
        message = {
            **self._head(),
            "content": list(map(whole_block, self._blocks)),
            **self._stop(reply),
            "usage": usage(reply.usage),
        }
        return msgspec.json.encode(message).decode()

    def _text(self, text: str) -> Iterator[ServerSentEvent]:
        """Text of a text block, which begins here unless it is open."""
        if not self._open or self._blocks[-1]["type"] != "text":
            yield from self._begin({"type": "text", "text": ""})
        self._blocks[-1]["text"] += text
        if text:
            yield self._delta({"type": "text_delta", "text": text})

    def _call(self, part: CallPart) -> Iterator[ServerSentEvent]:
        """A part of a call: its first begins a block."""
        if part.name:
            self._called = True
            yield from self._begin({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
            self._blocks[-1]["input"] = ""  # as JSON, until the message is whole
        if part.arguments:
            self._blocks[-1]["input"] += part.arguments
            yield self._delta({"type": "input_json_delta", "partial_json": part.arguments})

    def _begin(self, block: dict[str, Any]) -> Iterator[ServerSentEvent]:
        """Begin a block; a ping follows the first one."""
        yield from self._close()
        self._blocks.append(block)
        self._open = True
        yield written("content_block_start", {"index": len(self._blocks) - 1, "content_block": block})
        if len(self._blocks) == 1:
            yield written("ping", {})

    def _delta(self, delta: dict[str, Any]) -> ServerSentEvent:
        return written("content_block_delta", {"index": len(self._blocks) - 1, "delta": delta})

    def _close(self) -> Iterator[ServerSentEvent]:
        """End the open block, if there is one."""
        if self._open:
            self._open = False
            yield written("content_block_stop", {"index": len(self._blocks) - 1})

    def _stop(self, reply: Ended) -> dict[str, Any]:
        """Why the reply ended."""
        reason = "stop_sequence" if self._stop_sequence else "tool_use" if self._called else "end_turn"
        if reply.finish == "length":
            reason = "max_tokens"
        more = {"outcome": reply.ended_by_server} if reply.ended_by_server else {}
        return {"stop_reason": reason, "stop_sequence": self._stop_sequence, **more}

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model}


def written(kind: str, fields: dict[str, Any]) -> ServerSentEvent:
    """An event with its name, in the data too."""
    return ServerSentEvent(msgspec.json.encode({"type": kind, **fields}).decode(), event=kind, sep="\n")


def whole_block(block: dict[str, Any]) -> dict[str, Any]:
    """A block with the arguments of a call as an object; empty if the reply ended before they were whole."""
    if block["type"] != "tool_use":
        return block
    try:
        return {**block, "input": msgspec.json.decode(block["input"])}
    except msgspec.DecodeError:
        return {**block, "input": {}}


def usage(tokens: Usage) -> dict[str, Any]:
    """Anthropic's `usage`, from the ledger's counts: `input_tokens` leaves out what came from the cache."""
    return {
        "input_tokens": tokens.prompt - tokens.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": tokens.output,
    }
