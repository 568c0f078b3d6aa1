"""A server that answers as it is told: faults that must be timed, and texts that no model would write on demand."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from server.api import widget

ASSETS = Path(__file__).parents[2] / "server" / "assets"
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "content-type",
    "Access-Control-Expose-Headers": "Retry-After, X-Request-Id",
}


class Stub:
    """What the next answers are, and what was asked."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.pieces: Sequence[str] = ("Hello", " **world**", ".")
        self.delay = 0.0
        self.cut = False  # close the connection in the middle, after the pieces
        self.hold = False  # wait after the pieces until the client leaves
        self.status = 200
        self.headers: dict[str, str] = {}
        self.error = "The server says no."
        self.skill: dict[str, Any] = {"name": "help", "title": "Garden help", "greeting": "Ask me **anything**."}
        self.skill_status = 200
        self.skill_delay = 0.0
        self.asked: list[dict[str, Any]] = []
        self.left = 0

    async def stream(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
            await asyncio.sleep(self.delay)
        try:
            while self.hold:
                await asyncio.sleep(0.02)
        finally:
            self.left += self.hold
        if self.cut:
            raise ConnectionAbortedError
        yield b": ping\r\n\r\n"
        yield event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        yield event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 3}})
        yield b"data: [DONE]\r\n\r\n"

    async def completions(self, request: Request) -> Response:
        self.asked.append(await request.json())
        if self.status != 200:
            headers = {**CORS, **self.headers}
            return JSONResponse({"error": {"message": self.error}}, self.status, headers=headers)
        return StreamingResponse(self.stream(), headers=CORS, media_type="text/event-stream")

    async def about(self, request: Request) -> Response:
        await asyncio.sleep(self.skill_delay)
        return JSONResponse(self.skill, self.skill_status, headers=CORS)

    def app(self) -> Starlette:
        async def preflight(_: Request) -> Response:
            return Response(headers=CORS)

        path = "/v1/chat/completions"
        api = [
            Route(path, preflight, methods=["OPTIONS"]),
            Route(path, self.completions, methods=["POST"]),
            Route("/v1/skills/{name}", self.about),
        ]
        return Starlette(routes=[*api, *widget.routes(ASSETS)])


def event(data: object) -> bytes:
    return f"data: {json.dumps(data)}\r\n\r\n".encode()


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Serve an app on a free port of its own; gives the origin."""
    config = uvicorn.Config(app, port=0, log_level="critical", http="h11", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        pass
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(5)
