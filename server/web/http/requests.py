"""What endpoints read from a request: its state, client address, bearer token, and a body of bounded size and time."""

import asyncio
import secrets
import zlib
from typing import Any, Self

from msgspec import Struct, field
from msgspec.structs import asdict
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from server.errors import InvalidRequest, Reason, TooLarge, TooSlow, Unsupported
from server.skills.skill import Skill

BODY_SECONDS = 30.0
GZIP = 31  # zlib's window bits for gzip's header and checksum
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
    """The whole body, decompressed; raises TooLarge beyond `limit` bytes, TooSlow, or Unsupported for an encoding.

    Raises InvalidRequest if the client disconnects or sends damaged gzip. `seconds` is BODY_SECONDS by default.
    """
    seconds = BODY_SECONDS if seconds is None else seconds
    body = BodyBuffer(request.headers.get("content-encoding", ""), limit)
    received = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                received += len(chunk)
                body.add(chunk)
                if received > DISCARDED_LIMITS * limit:
                    break
    except ClientDisconnect:
        raise InvalidRequest("The body did not arrive whole.") from None
    except TimeoutError:
        raise TooSlow(f"The body did not arrive within {seconds:.0f} seconds.", code="body_too_slow") from None
    return body.finish()


class BodyBuffer:
    """Gathers a body of at most `limit` bytes, decompressed if `encoding` is gzip; never holds more."""

    def __init__(self, encoding: str, limit: int) -> None:
        name = encoding.strip().lower()
        if name not in ("", "identity", "gzip", "x-gzip"):
            raise Unsupported(
                "The body's Content-Encoding is not supported: send gzip, or none.", code="unsupported_encoding"
            )
        self._unpacking = zlib.decompressobj(wbits=GZIP) if name.endswith("gzip") else None
        self._limit = limit
        self._content = bytearray()
        self._full = False

    def add(self, chunk: bytes) -> None:
        """Add a part of the body as it arrived; raises InvalidRequest if it is not gzip."""
        if self._full:
            return
        if self._unpacking is not None:
            try:
                chunk = self._unpacking.decompress(chunk, self._limit + 1 - len(self._content))
            except zlib.error:
                raise InvalidRequest("The body is not gzip, as its Content-Encoding says.") from None
            self._full = bool(self._unpacking.unconsumed_tail)
        self._full = self._full or len(self._content) + len(chunk) > self._limit
        if not self._full:
            self._content += chunk

    def finish(self) -> bytes:
        """The content; raises TooLarge, or InvalidRequest for gzip that is cut off or goes on after its end."""
        if self._full:
            raise TooLarge(f"The body is larger than {self._limit} bytes.", code="body_too_large")
        if self._unpacking is not None and (not self._unpacking.eof or self._unpacking.unused_data):
            raise InvalidRequest("The body's gzip is cut off, or goes on after its end.")
        return bytes(self._content)
