"""What every reply of the public listener has in common: a request id, CORS for known origins, and no leaking error.

A plain ASGI wrapper around the whole application, so that it also frames the replies of the error handlers.
"""

import logging
import secrets
import traceback

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import problems
from server.errors import Forbidden
from server.skills import Skills

logger = logging.getLogger(__name__)
API = "/v1/"
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
    "Access-Control-Max-Age": "7200",
}
EXPOSED = ", ".join(
    [
        "Retry-After",
        "X-Request-Id",
        "X-RateLimit-Limit-Requests",
        "X-RateLimit-Remaining-Requests",
        "X-RateLimit-Reset-Requests",
    ]
)


class Frame:
    """Wraps `app`; pages of an origin that some skill names may read the replies under /v1/."""

    def __init__(self, app: ASGIApp, skills: Skills) -> None:
        self._app = app
        self._skills = skills

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; everything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = identity
        origin = Headers(scope=scope).get("origin")

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message), scope["path"], identity, origin)
            await send(message)

        try:
            if scope["method"] == "OPTIONS" and scope["path"].startswith(API):
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
