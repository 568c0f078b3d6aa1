"""Errors and credentials as Anthropic's API has them."""

from typing import Any

from starlette.datastructures import Headers

from server.errors import SecateurError
from server.web.api.reply_endpoint import Dialect
from server.web.http import problems
from server.web.http.requests import bearer

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Anthropic's type of an error, by status."""


def error_body(error: SecateurError) -> dict[str, Any]:
    """The body of an error: {"type": "error", "error": {"type", "message"}}."""
    kind = TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": problems.clean(error.message)}}


def credential(headers: Headers) -> str | None:
    """The API key in `x-api-key`, or else in `Authorization: Bearer`."""
    return headers.get("x-api-key") or bearer(headers)


ANTHROPIC = Dialect(credential, error_body)
