"""A scripted server of docs/reference/widget-protocol.md: faults on demand, and texts that no model would write."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from server.web.api import assets
from tests.conftest import ROOT

ASSETS = ROOT / "server/web/assets/widget"
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "authorization, content-type",
    "Access-Control-Expose-Headers": "Retry-After, X-Request-Id",
}


class Stub:
    """The next answers, and a record of the requests."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.pieces: Sequence[str] = ("Hello", " **world**", ".")
        self.citations: list[dict[str, str]] = []
        self.finish = "stop"
        self.delay = 0.0  # seconds after each event
        self.allowed: float = math.inf  # how many of a reply's events are sent until a test raises it
        self.held: set[str] = set()  # of "session", "rating" and "stop": requests that wait until a test removes them
        self.cuts = 0  # how many of the next streams break after the pieces
        self.lost = False  # a reply cannot be resumed
        self.hold = False  # wait after the pieces until a stop
        self.status = 200
        self.headers: dict[str, str] = {}
        self.error: dict[str, Any] = {"message": "The server says no.", "code": None}
        self.skill: dict[str, Any] = {"name": "help", "title": "Garden help", "greeting": "Ask me **anything**."}
        self.session_status = 200
        self.turns: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.sessions: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.resumed: list[str] = []
        self.ratings: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.resets = 0
        self.reset_status = 204
        self.tokens_of_questions: list[str] = []
        self.streams = 0  # open ones
        self.rating_status = 200
        self.stop_status = 200
        self.silent = 0  # how many of the next streams fall silent after the pieces
        self.replaceable = True  # whether an answer that is asked again is still known
        self.forgotten = False  # whether conversations are lost
        self.empty = False  # since a reset
        self.down = False  # whether the app fails to load
        self.handed_over: list[dict[str, Any]] = []

    def events(self, reply: str) -> list[tuple[str, Any]]:
        """All events of the reply before its end."""
        texts = [("text", {"text": piece}) for piece in self.pieces if piece]
        sources = [("citations", {"citations": self.citations})] if self.citations else []
        return [("start", {"reply": reply, "conversation": "cnv_1"}), *texts, *sources]

    async def stream(self, reply: str, first: int) -> AsyncIterator[bytes]:
        self.streams += 1
        try:
            async for part in self.parts(reply, first):
                yield part
        finally:
            self.streams -= 1

    async def parts(self, reply: str, first: int) -> AsyncIterator[bytes]:
        made = self.events(reply)
        for number, (name, data) in enumerate(made):
            if number >= first:
                while number >= self.allowed:
                    await asyncio.sleep(0.02)
                yield event(number, name, data)
                await asyncio.sleep(self.delay)
        if self.cuts > 0:
            self.cuts -= 1
            raise ConnectionAbortedError
        if self.silent > 0:
            self.silent -= 1
            await asyncio.sleep(60)
        while self.hold and reply not in self.stopped:
            await asyncio.sleep(0.05)
            yield b": keep-alive\r\n\r\n"  # a busy WebKit may keep the last bytes back until others follow
        yield b": keep-alive\r\n\r\n"
        finish = "stopped" if reply in self.stopped else self.finish
        yield event(len(made), "end", {"finish": finish, "usage": {}})

    async def release_of(self, name: str) -> None:
        while name in self.held:
            await asyncio.sleep(0.02)

    async def session(self, request: Request) -> Response:
        body = await request.json()
        self.sessions.append(body)
        await self.release_of("session")
        if self.session_status != 200:
            return self.refusal(self.session_status)
        token = f"token-{len(self.sessions)}"
        self.tokens.add(token)
        resumed = body.get("resume") == "secret" and not self.forgotten and not self.empty
        answer = {"token": token, "expires_in": 600, "conversation": "cnv_1", "resume": "secret", "resumed": resumed}
        limits = {"text_bytes": 8192, "context_bytes": 2048, "comment_bytes": 1000}
        return JSONResponse({**answer, "skill": self.skill, "limits": limits}, headers=CORS)

    def refusal(self, status: int) -> Response:
        return JSONResponse({"error": self.error}, status, headers={**CORS, **self.headers})

    async def messages(self, request: Request) -> Response:
        self.asked.append(await request.json())
        self.tokens_of_questions.append(request.headers["Authorization"].removeprefix("Bearer "))
        if self.status != 200:
            return self.refusal(self.status)
        if "replace" in self.asked[-1] and not self.replaceable:
            return JSONResponse({"error": {"message": "Not the latest.", "code": "reply_unknown"}}, 409, headers=CORS)
        self.empty = False
        return self.events_response(f"rep_{len(self.asked)}", 0)

    async def replies(self, request: Request) -> Response:
        reply = request.path_params["reply"]
        self.resumed.append(f"{reply}?{request.url.query}")
        if self.lost:
            self.error = {"message": "Gone.", "code": "reply_unknown"}
            return self.refusal(404)
        return self.events_response(reply, int(request.query_params["from"]))

    def events_response(self, reply: str, first: int) -> Response:
        return StreamingResponse(self.stream(reply, first), headers=CORS, media_type="text/event-stream")

    async def stop(self, request: Request) -> Response:
        self.stopped.append(request.path_params["reply"])
        await self.release_of("stop")
        if self.stop_status != 200:
            return self.refusal(self.stop_status)
        return JSONResponse({"reply": self.stopped[-1], "finish": "stopped"}, headers=CORS)

    async def feedback(self, request: Request) -> Response:
        await self.release_of("rating")
        if self.rating_status != 200:
            return self.refusal(self.rating_status)
        self.ratings.append(await request.json())
        return Response(status_code=204, headers=CORS)

    async def hand_over(self, request: Request) -> Response:
        self.handed_over.append(await request.json())
        return Response(status_code=204, headers=CORS)

    async def forget(self, _: Request) -> Response:
        if self.reset_status != 204:
            return self.refusal(self.reset_status)
        self.resets += 1
        self.empty = True
        self.turns = []
        return Response(status_code=204, headers=CORS)

    async def conversation(self, _: Request) -> Response:
        return JSONResponse({"conversation": "cnv_1", "running": None, "turns": self.turns}, headers=CORS)

    def app(self) -> Starlette:
        async def preflight(_: Request) -> Response:
            return Response(headers=CORS)

        def bearer(handler: Any) -> Any:
            async def checked(request: Request) -> Response:
                if request.headers.get("Authorization", "").removeprefix("Bearer ") in self.tokens:
                    response: Response = await handler(request)
                    return response
                return JSONResponse({"error": {"code": "session_expired"}}, 401, headers=CORS)

            return checked

        api = {
            "session": self.session,
            "messages": bearer(self.messages),
            "conversation": bearer(self.conversation),
            "replies/{reply}": bearer(self.replies),
            "replies/{reply}/stop": bearer(self.stop),
            "feedback": bearer(self.feedback),
            "handover": bearer(self.hand_over),
            "reset": bearer(self.forget),
        }
        routes = [Route(f"/v1/widget/{path}", handler, methods=["POST"]) for path, handler in api.items()]
        options = Route("/v1/widget/{path:path}", preflight, methods=["OPTIONS"])
        files = assets.routes(ASSETS)
        parts = [route for route in files if route.path.startswith("/assets/")]

        def part(route: Route) -> Any:
            async def served(request: Request) -> Response:
                if self.down:
                    return Response(status_code=503, headers=CORS)
                response: Response = await route.endpoint(request)
                return response

            return served

        return Starlette(routes=[options, *routes, *(Route(route.path, part(route)) for route in parts), *files])


def turn(question: str, text: str, **reply: Any) -> dict[str, Any]:
    """A turn of an earlier page."""
    made = {"id": "rep_0", "text": text, "finish": "stop", "next": 9, "citations": [], "rating": None, **reply}
    return {"question": question, "reply": made}


def event(number: int, name: str, data: object) -> bytes:
    return f"id: {number}\r\nevent: {name}\r\ndata: {json.dumps(data)}\r\n\r\n".encode()
