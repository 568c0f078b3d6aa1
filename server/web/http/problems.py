"""Errors in OpenAI's shape, {"error": {message, type, param, code}}, with Retry-After where a retry can succeed."""

import logging
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.errors import (
    BudgetExceeded,
    NotFound,
    RateLimited,
    RequestError,
    SecateurError,
    TooLarge,
    TooSlow,
    Unsupported,
)
from server.web.http.requests import RequestState

RETRY_SECONDS = 5
MAX_CHARACTERS = 800
SHOWN_PATH = 100  # characters
CONVERTOR = re.compile(r":\w+(?=})")  # of a route's pattern, such as `:path`
logger = logging.getLogger(__name__)
BUG = SecateurError("The server made a mistake; its log has the details under this request's id.")
ErrorBody = Callable[[SecateurError], dict[str, Any]]


def body(error: SecateurError) -> dict[str, Any]:
    """The response body for `error`, as a JSON object."""
    return {
        "error": {
            "message": clean(error.message),
            "type": error.type,
            "param": None if error.param is None else clean(error.param),
            "code": error.code,
        }
    }


def clean(text: str) -> str:
    """At most MAX_CHARACTERS of `text` as valid UTF-8: messages may repeat what a client sent."""
    return text[:MAX_CHARACTERS].encode(errors="replace").decode()


def write_errors_by(error_body: ErrorBody, request: Request) -> None:
    """Give every later error of this request the body that `error_body` makes, instead of OpenAI's."""
    request.scope.setdefault("state", {})["error_body"] = error_body


def _error_body(request: Request) -> ErrorBody:
    """How this request's errors are written."""
    found: ErrorBody = request.scope.get("state", {}).get("error_body", body)
    return found


def response(error: SecateurError, *, close: bool = False, error_body: ErrorBody = body) -> Response:
    """The response for `error`, its body made by `error_body`; `close` closes the connection after it."""
    headers: dict[str, str] = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(getattr(error, "retry_after", RETRY_SECONDS))
        headers["x-should-retry"] = "false" if isinstance(error, BudgetExceeded) else "true"  # budgets reset in hours
    if isinstance(error, RateLimited):
        headers.update(error.headers)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unsupported):
        headers["Accept-Encoding"] = "gzip"
    if close or isinstance(error, TooLarge | TooSlow):
        headers["Connection"] = "close"
    return Response(msgspec.json.encode(error_body(error)), error.status, headers, "application/json")


async def on_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for SecateurError; records why the request was refused."""
    assert isinstance(error, SecateurError)
    state = RequestState.of(request.scope)
    state.refused = error.reason
    if error.status >= 500:
        log_failure(state.request_id, error)
    return response(error, error_body=_error_body(request))


def log_failure(request_id: str, error: SecateurError) -> None:
    """Log why a request is answered 5xx: each 500, and each cause of a 503 once a minute.

    An error's own sentence may repeat a client's text, as a template's does; its class, reason and place do not.
    """
    chain = " <- ".join(type(cause).__name__ for cause in causes(error))
    facts = {"request_id": request_id, "status": error.status, "cause": error.reason or chain}
    if error.status == 503:
        logger.warning(f"A request was answered 503: {chain}, {error.reason}", extra={"facts": facts})
        return
    frames = "".join(traceback.format_tb(list(causes(error))[-1].__traceback__))
    logger.error("A request was answered %d: %s\n%s", error.status, chain, frames, extra={"facts": facts})


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for the router's errors: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:SHOWN_PATH]
    if error.status_code == 404:
        what = f"There is nothing at {path}. This server answers: {', '.join(served(request))}."
        return response(NotFound(what, code="not_found"))
    allowed = (error.headers or {}).get("Allow", "")
    problem = RequestError(f"{error.detail} at {path}; allowed: {allowed}.", code="method_not_allowed")
    problem.status = error.status_code
    reply = response(problem)
    reply.headers.update(error.headers or {})
    return reply


def served(request: Request) -> list[str]:
    """The method and path of each endpoint of the API, or of the whole app if it has none."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    api = [route for route in routes if route.path.startswith("/v1/") and not route.path.startswith("/v1/widget/")]
    return [f"{min((route.methods or {'GET'}) - {'HEAD'})} {CONVERTOR.sub('', route.path)}" for route in api or routes]


async def on_bug(request: Request, _: Exception) -> Response:
    """Starlette's handler for any other exception; reveals nothing about it."""
    return response(BUG, error_body=_error_body(request))
