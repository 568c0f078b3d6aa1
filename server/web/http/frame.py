"""What every reply of the public listener has in common: a request id, CORS for known origins, and no leaking error.

A plain ASGI wrapper around the whole application, so that it also frames the replies of the error handlers.
"""

import logging
import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Forbidden, Reason
from server.skills.catalogue import Skills
from server.web.http import problems
from server.web.http.traces import NoTraces, Traces

logger = logging.getLogger(__name__)
access = logging.getLogger("server.access")
API = "/v1/"
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
    "Access-Control-Max-Age": "7200",
}
SPAN_NAMES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "skill": "gen_ai.request.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
RATES = [f"X-RateLimit-{what}-{of}" for of in ("Requests", "Tokens") for what in ("Limit", "Remaining", "Reset")]
EXPOSED = ", ".join(["Retry-After", "X-Request-Id", *RATES])


class Frame:
    """Wraps `app`; pages of an origin that some skill names may read the replies under /v1/.

    `refused` is told the skill, where one is known, and the reason of each request that was refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        skills: Skills,
        routes: Sequence[Route] = (),
        traces: Traces | None = None,
        refused: Callable[[str, Reason], None] = lambda skill, reason: None,
    ) -> None:
        self._app = app
        self._skills = skills
        self._refused = refused
        self._paths = {route.endpoint: route.path for route in routes}
        self._traces = traces or NoTraces()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; everything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity, headers = f"req_{secrets.token_hex(16)}", Headers(scope=scope)
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"  # as OpenTelemetry has it: any word is one
        facts: dict[str, Any] = {"request_id": identity, "method": method}
        scope.setdefault("state", {}).update(request_id=identity, facts=facts)
        started = time.monotonic()
        with self._traces.span(method, headers) as span:
            await self._answer(scope, receive, send, headers.get("origin"))
            # Of the path only its pattern is told: what a caller put into it may be anything.
            endpoint = scope.get("endpoint")
            facts["route"] = self._paths.get(endpoint, "unmatched") if endpoint else "unmatched"
            facts["seconds"] = round(time.monotonic() - started, 4)
            span.update(attributes(facts))
        if "refused" in facts:
            self._refused(facts.get("skill", ""), facts["refused"])
        access.info("request", extra={"facts": facts})

    async def _answer(self, scope: Scope, receive: Receive, send: Send, origin: str | None) -> None:
        identity, facts = scope["state"]["request_id"], scope["state"]["facts"]

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                self._add_headers(MutableHeaders(scope=message), scope["path"], identity, origin)
            await send(message)

        try:
            if scope["method"] == "OPTIONS" and scope["path"].startswith(API):
                if origin is None or not self._skills.knows(origin):
                    facts["refused"] = "origin"
                await self._preflight(origin)(scope, receive, framed)
            else:
                await self._app(scope, receive, framed)
        except Exception as error:
            # The message of an unforeseen error may hold a visitor's words; where it happened does not.
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s: %s\n%s", identity, type(error).__name__, frames)

    def _add_headers(self, headers: MutableHeaders, path: str, identity: str, origin: str | None) -> None:
        headers["X-Request-Id"] = identity
        headers["X-Content-Type-Options"] = "nosniff"
        if path.startswith(API):
            headers.add_vary_header("Origin")
            if origin is not None and self._skills.knows(origin):
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = EXPOSED

    def _preflight(self, origin: str | None) -> Response:
        """A browser asks before it posts; which skill is meant stands in the body that it holds back."""
        if origin is None or not self._skills.knows(origin):
            return problems.response(
                Forbidden("Pages of this origin may not use any skill.", code="origin_not_allowed")
            )
        return Response(status_code=204, headers=PREFLIGHT)


def attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A request's facts by OpenTelemetry's names."""
    known = {SPAN_NAMES.get(name, f"secateur.{name}"): value for name, value in facts.items()}
    return {"name": f"{facts['method']} {facts['route']}", **known}
