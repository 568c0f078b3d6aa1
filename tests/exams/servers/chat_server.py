"""A server of OpenAI's chat completions that says a text, and fails when told to."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.exams.servers.app_server import listening


class ChatServer:
    """Says `pieces`; `faults` are statuses of the next answers, `cut_after` closes streams after some pieces.

    After `held_after` pieces it waits until the client leaves.
    """

    def __init__(self, pieces: tuple[str, ...]) -> None:
        self.pieces = pieces
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.faults: list[int] = []
        self.cut_after: int | None = None
        self.held_after: int | None = None
        self.usage: dict[str, Any] | None = {
            "prompt_tokens": 70,
            "completion_tokens": 40,
            "prompt_tokens_details": {"cached_tokens": 60},
        }
        self.url = ""

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self.chat, methods=["POST"]), Route("/up", self.up)])

    async def up(self, _: Request) -> Response:
        return Response()

    async def chat(self, request: Request) -> Response:
        self.requests.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        if self.faults:
            return Response('{"error": {"message": "told to fail"}}', self.faults.pop(0))
        return StreamingResponse(self._events(request, self.requests[-1]["max_tokens"]), media_type="text/event-stream")

    async def _events(self, request: Request, most: int) -> AsyncIterator[str]:
        yield event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for number, piece in enumerate(self.pieces):
            if number == self.cut_after:
                raise ConnectionResetError
            while number == self.held_after and not await request.is_disconnected():
                await asyncio.sleep(0.01)
            yield event(choices=[{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
        reason = "length" if len(self.pieces) >= most else "stop"
        yield event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
        if self.usage is not None:
            yield event(choices=[], usage=self.usage)
        yield "data: [DONE]\n\n"


def event(**fields: Any) -> str:
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'usage': None, **fields})}\n\n"


@contextmanager
def running(server: ChatServer) -> Iterator[ChatServer]:
    """Serve on a free port of this machine, in a thread."""
    with listening(server.app()) as server.url:
        yield server
