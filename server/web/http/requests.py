"""What endpoints read from a request: its state, client address, bearer token, and a body of bounded size and time."""

import asyncio
import secrets
from typing import Any, Self

from msgspec import Struct, field
from msgspec.structs import asdict
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from server.errors import InvalidRequest, Reason, TooLarge, TooSlow
from server.skills.skill import Skill

BODY_SECONDS = 30.0
DISCARDED_LIMITS = 16  # an oversized body is read up to 16 times its limit: a client still sending reads no response


def new_request_id() -> str:
    """A random id, `req_` and 32 hex digits."""
    return f"req_{secrets.token_hex(16)}"


class RequestState(Struct):
    """Facts about one request, for its access-log line and its span: names and counts, never a client's own text."""

    request_id: str = field(default_factory=new_request_id)
    """Returned as X-Request-Id."""
    method: str | None = None
    skill: str | None = None
    """A configured skill that the request names, whether or not it may use it."""
    key: str | None = None
    """The API key's id in the ledger."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish: str | None = None
    refused: Reason | None = None
    status: int | None = None
    route: str | None = None
    """The pattern of the path."""
    seconds: float | None = None

    @classmethod
    def of(cls, scope: Scope) -> Self:
        """The state of the request with this ASGI scope; made on first use."""
        states: dict[str, Self] = scope.setdefault("state", {})
        if "request" not in states:
            states["request"] = cls()
        return states["request"]

    def name_skill(self, skill: Skill | None) -> None:
        """Record the name of the requested skill, or None if there is no such skill."""
        self.skill = skill.name if skill else None

    @property
    def facts(self) -> dict[str, Any]:
        """The known facts, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def address(request: Request) -> str:
    """The client's IP address, from a trusted proxy's X-Forwarded-For if it sent one; empty on other transports."""
    return request.client.host if request.client else ""


def bearer(headers: Headers) -> str | None:
    """The token in `Authorization: Bearer TOKEN`, or None."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    shown = token.strip() if scheme.lower() == "bearer" else ""
    return shown or None


async def read_body(request: Request, limit: int, seconds: float | None = None) -> bytes:
    """The whole body; raises TooLarge beyond `limit` bytes, TooSlow, or InvalidRequest if the client disconnects.

    `seconds` is BODY_SECONDS by default.
    """
    seconds = BODY_SECONDS if seconds is None else seconds
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    body += chunk
                elif size > DISCARDED_LIMITS * limit:
                    break
    except ClientDisconnect:
        raise InvalidRequest("The body did not arrive whole.") from None
    except TimeoutError:
        raise TooSlow(f"The body did not arrive within {seconds:.0f} seconds.", code="body_too_slow") from None
    if size > limit:
        raise TooLarge(f"The body is larger than {limit} bytes.", code="body_too_large")
    return bytes(body)
