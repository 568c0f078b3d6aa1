"""POSTs a body and reads the response's server-sent events as they come, over one connection for each request."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from urllib.parse import urlsplit

import h11
from msgspec import Struct

MOST_LINE = 1 << 20
"""Bytes of one event; a longer one is no event of a reply."""
TRANSIENT = (408, 425, 429)
"""Statuses below 500 after which another backend may answer."""


class Broken(Exception):
    """The backend could not be reached, or its response ended early; another try may succeed."""


class RefusedByBackend(Exception):
    """The backend answered with an error status that another try would not change."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Target(Struct, frozen=True):
    """Where to connect, and how."""

    url: str
    """http[s]://HOST:PORT, perhaps with a path before those of the protocol."""
    headers: Mapping[str, str] = {}
    tls: ssl.SSLContext | None = None
    connect_seconds: float = 5.0
    health: str = "/health"
    """The path of its health, which answers 200."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


async def events(target: Target, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
    """The `data` of each event of the response to a POST; closing the generator closes the connection.

    Raises Broken and RefusedByBackend.
    """
    reader, writer = await _connect(target)
    try:
        connection = h11.Connection(h11.CLIENT)
        writer.write(_request(connection, target, path, body))
        async with aclosing(_response(connection, reader)) as pieces:
            rest = b""
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > MOST_LINE:
                    raise Broken("an event is too long")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()
    except (OSError, h11.RemoteProtocolError) as error:
        raise Broken(str(error) or type(error).__name__) from None
    finally:
        writer.transport.abort()


async def post(target: Target, path: str, body: bytes) -> None:
    """POST and ignore what comes back; raises Broken and RefusedByBackend."""
    async with aclosing(events(target, path, body)) as answer:
        async for _ in answer:
            pass


async def _connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = target.address
    name = host if target.tls else None
    try:
        async with asyncio.timeout(target.connect_seconds):
            return await asyncio.open_connection(host, port, ssl=target.tls, server_hostname=name)
    except TimeoutError:
        raise Broken(f"no connection within {target.connect_seconds:g} s") from None
    except OSError as error:  # also ssl.SSLError
        raise Broken(error.strerror or str(error)) from None


def _request(connection: h11.Connection, target: Target, path: str, body: bytes) -> bytes:
    parts = urlsplit(target.url)
    fields = {
        "Host": parts.netloc,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Accept": "text/event-stream",
        "Connection": "close",
        **target.headers,
    }
    place = parts.path.rstrip("/") + path
    begin = connection.send(h11.Request(method="POST", target=place, headers=list(fields.items())))
    content, end = connection.send(h11.Data(body)), connection.send(h11.EndOfMessage())
    return b"".join(part for part in (begin, content, end) if part)


async def _response(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    """The pieces of the body; raises Broken or RefusedByBackend for a bad status."""
    async for event in _received(connection, reader):
        if isinstance(event, h11.Response) and event.status_code >= 300:
            status = event.status_code
            raise Broken(f"status {status}") if status in TRANSIENT or status >= 500 else RefusedByBackend(status)
        if isinstance(event, h11.Data):
            yield bytes(event.data)


async def _received(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncGenerator[object, None]:
    """The events of a response, up to its end."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(1 << 16))
            continue
        yield event
        if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return
