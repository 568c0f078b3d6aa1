"""Errors as OpenAI's clients know them: {"error": {message, type, param, code}}, with a hint when to come back."""

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.errors import BudgetExceeded, NotFound, RateLimited, RequestError, SecateurError, TooLarge, TooSlow

RETRY_SECONDS = 5
BUG = SecateurError("The server made a mistake; its log has the details under this request's id.")


def body(error: SecateurError) -> dict[str, Any]:
    """The error object; what a caller sent may be repeated in it, so it is kept short and made valid text."""
    return {
        "error": {
            "message": clean(error.message),
            "type": error.type,
            "param": None if error.param is None else clean(error.param),
            "code": error.code,
        }
    }


def clean(text: str) -> str:
    """At most 500 characters that UTF-8 can carry."""
    return text[:500].encode(errors="replace").decode()


def response(error: SecateurError, *, close: bool = False) -> Response:
    """The reply for `error`; `close` ends the connection with it."""
    headers: dict[str, str] = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(getattr(error, "retry_after", RETRY_SECONDS))
        headers["x-should-retry"] = "false" if isinstance(error, BudgetExceeded) else "true"  # that takes hours
    if isinstance(error, RateLimited):
        headers.update(error.headers)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if close or isinstance(error, TooLarge | TooSlow):
        headers["Connection"] = "close"
    return Response(msgspec.json.encode(body(error)), error.status, headers, "application/json")


async def on_error(request: Request, error: Exception) -> Response:
    """For what was raised on purpose; the frame learns why."""
    assert isinstance(error, SecateurError)
    if error.reason is not None and "facts" in request.scope.get("state", {}):
        request.scope["state"]["facts"]["refused"] = error.reason
    return response(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """For what the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return response(NotFound("There is nothing at this path.", code="not_found"))
    problem = RequestError(f"{error.detail}.", code="method_not_allowed")
    problem.status = error.status_code
    reply = response(problem)
    reply.headers.update(error.headers or {})
    return reply


async def on_bug(_: Request, __: Exception) -> Response:
    """For everything else; the message says nothing of the inside."""
    return response(BUG)
