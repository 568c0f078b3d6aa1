"""The h11 protocol with deadlines for whoever sends slowly or does not read, on every connection of a listener.

A request's head must arrive within `head_seconds` of the connection or of the answer before it; a peer that takes no
byte for `send_seconds` is cut, which frees what the answer holds. Bodies have a deadline where they are read. Beyond as
many connections as there may be, a new one takes the place of the one that has kept its head back the longest.
"""

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from msgspec import Struct
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import InvalidRequest
from server.web.http import problems

BACKLOG = 256  # connections that are taken at once, before the first of them is looked at
SPARE = 512  # descriptors that are no connections of visitors: files, the other listeners, and as many as a backlog
OTHERS = 64  # connections of each of the other listeners
logger = logging.getLogger(__name__)
LENGTHS = {b"content-length", b"transfer-encoding"}


class Patience(Struct, frozen=True):
    """How long is waited, in seconds, and how many connections a listener has at once."""

    head_seconds: float = 10.0
    send_seconds: float = 30.0
    connections: int = 4096


class BoundedProtocol(H11Protocol):
    """One connection; nothing of its deadlines shows to the application but a client that left."""

    def __init__(
        self, *arguments: Any, patience: Patience, waiting: "dict[BoundedProtocol, None]", **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._patience = patience
        self._waiting = waiting  # those of the listener that owe a head, the longest first
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head; one connection too many closes another, or is closed unheard if all are served."""
        super().connection_made(transport)
        bound = transport.get_extra_info("socket")
        if bound is not None and bound.family in (socket.AF_INET, socket.AF_INET6):
            # The kernel gives up on what is sent and not taken, also after the answer has left this process.
            milliseconds = int(self._patience.send_seconds * 1000)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if len(self.connections) > self._patience.connections:
            if not self._waiting:
                transport.abort()
                return
            next(iter(self._waiting)).leave()
        self._await_head()

    def leave(self) -> None:
        """Make room for another connection."""
        self._heard()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the deadline of a head stands until the head is whole."""
        super().data_received(data)
        self._await_head()

    def on_response_complete(self) -> None:
        """Wait for the next head."""
        super().on_response_complete()
        self._await_head()

    def pause_writing(self) -> None:
        """The peer does not read: it has so long to begin again."""
        super().pause_writing()
        self._stall = self._later(self._stall, self._patience.send_seconds)

    def resume_writing(self) -> None:
        """The peer reads again."""
        super().resume_writing()
        self._stall = _cancelled(self._stall)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind."""
        self._heard()
        self._stall = _cancelled(self._stall)
        super().connection_lost(exc)

    def _await_head(self) -> None:
        """Keep the deadline going while no request is being answered, however many bytes trickle in."""
        if not getattr(self.cycle, "response_complete", True):
            self._heard()
        elif self._head is None and not self.transport.is_closing():
            self._head = self._later(None, self._patience.head_seconds)
            self._waiting[self] = None

    def _heard(self) -> None:
        """Nothing is owed any more."""
        self._head = _cancelled(self._head)
        self._waiting.pop(self, None)

    def _later(self, earlier: asyncio.TimerHandle | None, seconds: float) -> asyncio.TimerHandle:
        _cancelled(earlier)
        return self.loop.call_later(seconds, self.transport.abort)


class OneLength:
    """Refuses a request that tells its length in two ways: a proxy may have seen another request in it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; the connection of one that is refused ends with it, whatever follows."""
        if scope["type"] == "http" and {name for name, _ in scope["headers"]} >= LENGTHS:
            error = InvalidRequest("Send Content-Length or Transfer-Encoding, not both.")
            await problems.response(error, close=True)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """No timer, where there may have been one."""
    if timer is not None:
        timer.cancel()
    return None


def protocol(patience: Patience) -> Callable[..., BoundedProtocol]:
    """What uvicorn makes for each connection."""

    waiting: dict[BoundedProtocol, None] = {}

    def make(*arguments: Any, **options: Any) -> BoundedProtocol:
        return BoundedProtocol(*arguments, patience=patience, waiting=waiting, **options)

    return make


def room_for(wanted: int) -> int:
    """Let the process open so many connections, as far as the system allows; returns for how many there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE
    if 0 <= soft < needed:  # negative is without limit
        more = needed if hard < 0 else min(needed, hard)
        with suppress(OSError, ValueError):  # a sandbox may not let it
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    room = wanted if soft < 0 else min(wanted, soft - min(SPARE, soft // 2))
    if room < wanted:
        logger.warning(
            "%d connections at most in the place of %d: no more than %d files may be open", room, wanted, soft
        )
    return room
