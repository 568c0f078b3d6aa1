"""What every endpoint reads from a request: its id, its credentials, and a body of bounded size and time."""

import asyncio

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from server.errors import InvalidRequest, TooLarge, TooSlow

BODY_SECONDS = 30.0
DISCARD = 16  # so many limits of an oversized body are read and thrown away: a client that still sends reads no answer


def request_id(request: Request) -> str:
    """The id that the reply carries as X-Request-Id."""
    identity: str = request.scope["state"]["request_id"]
    return identity


def note(request: Request, **facts: str | int) -> None:
    """Let the access log and the request's span have these: names and counts, never what anybody wrote."""
    request.scope["state"]["facts"].update(facts)


def address(request: Request) -> str:
    """Where the request comes from, or what a trusted proxy says of that."""
    return request.client.host if request.client else ""


def bearer(headers: Headers) -> str | None:
    """The key or token in the header Authorization."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    shown = key.strip() if scheme.lower() == "bearer" else ""
    return shown or None


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; raises TooLarge beyond `limit` bytes, TooSlow, or InvalidRequest if it is cut."""
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    body += chunk
                elif size > DISCARD * limit:
                    break
    except ClientDisconnect:
        raise InvalidRequest("The body did not arrive whole.") from None
    except TimeoutError:
        raise TooSlow(f"The body did not arrive within {BODY_SECONDS:.0f} seconds.", code="body_too_slow") from None
    if size > limit:
        raise TooLarge(f"The body is larger than {limit} bytes.", code="body_too_large")
    return bytes(body)
