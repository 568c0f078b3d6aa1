"""Middleware of the public app: request ids, CORS for the skills' origins, spans, access log, unforeseen errors.

Plain ASGI around the whole application, so that responses of the error handlers pass through it too.
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Forbidden
from server.skills.catalogue import Skills
from server.web.http import problems
from server.web.http.metrics import method_of, paths_of, route_of
from server.web.http.requests import RequestState
from server.web.http.traces import NoTraces, Traces

logger = logging.getLogger(__name__)
access = logging.getLogger("server.access")
API = "/v1/"
STAINLESS = (
    "Arch",
    "Lang",
    "OS",
    "Package-Version",
    "Retry-Count",
    "Runtime",
    "Runtime-Version",
    "Timeout",
    "Helper-Method",
    "Async",
)
ALLOWED_HEADERS = (
    "Authorization", "Content-Type", "Content-Encoding", "Accept", "Last-Event-ID", "Idempotency-Key", "X-Request-Id",
    "OpenAI-Organization", "OpenAI-Project", "OpenAI-Beta", "User-Agent", "X-API-Key", "Anthropic-Version",
    "Anthropic-Beta", "Anthropic-Dangerous-Direct-Browser-Access", "HTTP-Referer", "X-Title", "Traceparent",
    *(f"X-Stainless-{name}" for name in STAINLESS),
)  # fmt: skip
"""What the official clients of OpenAI and Anthropic, and those built on them, send from a browser."""
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": ", ".join(ALLOWED_HEADERS),
    "Access-Control-Max-Age": "7200",
}
SPAN_ATTRIBUTES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "skill": "gen_ai.request.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
}
RATE_HEADERS = [f"X-RateLimit-{what}-{of}" for of in ("Requests", "Tokens") for what in ("Limit", "Remaining", "Reset")]
EXPOSED = ", ".join(
    ["Retry-After", "X-Request-Id", "X-Should-Retry", "X-Secateur-Ignored", "X-Secateur-Max-Tokens", *RATE_HEADERS]
)


class PublicMiddleware:
    """Wraps the public `app` with `routes`; pages of a skill's origins may read responses under /v1/.

    `ended` is called with the facts of each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        skills: Skills,
        routes: Sequence[Route] = (),
        traces: Traces | None = None,
        ended: Callable[[RequestState], None] = lambda state: None,
    ) -> None:
        self._app = app
        self._skills = skills
        self._ended = ended
        self._paths = paths_of(routes)
        self._traces = traces or NoTraces()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; scopes other than HTTP pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, headers = RequestState.of(scope), Headers(scope=scope)
        state.method = method_of(scope["method"])
        started = time.monotonic()
        with self._traces.span(state.method, headers) as attributes:
            await self._respond(scope, receive, send, headers.get("origin"))
            state.route = route_of(scope, self._paths)
            state.seconds = round(time.monotonic() - started, 4)
            attributes.update(span_attributes(state.facts))
            self._ended(state)
            access.info("request", extra={"facts": state.facts})

    async def _respond(self, scope: Scope, receive: Receive, send: Send, origin: str | None) -> None:
        """Pass the request on, or answer a preflight; adds headers, and logs an unforeseen error."""
        state = RequestState.of(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                state.status = message["status"]
                self._add_headers(MutableHeaders(scope=message), scope["path"], state.request_id, origin)
            await send(message)

        try:
            if scope["method"] == "OPTIONS" and scope["path"].startswith(API):
                await self._preflight(origin, state)(scope, receive, send_with_headers)
            else:
                await self._app(scope, receive, send_with_headers)
        except Exception as error:
            # Its message may hold a visitor's words; its place in the code does not.
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s: %s\n%s", state.request_id, type(error).__name__, frames)

    def _add_headers(self, headers: MutableHeaders, path: str, request_id: str, origin: str | None) -> None:
        headers["X-Request-Id"] = request_id
        headers["X-Content-Type-Options"] = "nosniff"
        if path.startswith(API):
            headers.add_vary_header("Origin")
            if origin is not None and self._skills.knows(origin):
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = EXPOSED

    def _preflight(self, origin: str | None, state: RequestState) -> Response:
        """The response to a preflight; the skill is named in the body, which the browser has not sent yet."""
        if origin is None or not self._skills.knows(origin):
            state.refused = "origin"
            return problems.response(
                Forbidden("Pages of this origin may not use any skill.", code="origin_not_allowed")
            )
        return Response(status_code=204, headers=PREFLIGHT)


def span_attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A request's facts under OpenTelemetry's names, and `name` for the span itself."""
    known = {SPAN_ATTRIBUTES.get(name, f"secateur.{name}"): value for name, value in facts.items()}
    return {"name": f"{facts['method']} {facts['route']}", **known}
