"""The h11 protocol with deadlines for slow peers and a bound on connections.

A request's head must arrive within `head_seconds` of the connection or of the previous response. A peer that reads
nothing for `send_seconds` is disconnected, which frees its reply. `requests.read_body` has the deadline for bodies. A
connection beyond the bound replaces the one that has waited longest for its head.
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

BACKLOG = 256  # connections the kernel queues before they are accepted
SPARE_FILES = 512  # descriptors kept free for files, the other listeners and a full backlog
ADMIN_CONNECTIONS = 64  # on each listener but the public one
LENGTH_HEADERS = {b"content-length", b"transfer-encoding"}
logger = logging.getLogger(__name__)


class ConnectionLimits(Struct, frozen=True):
    """Deadlines of each connection, and the most open connections of a listener."""

    head_seconds: float = 10.0
    send_seconds: float = 30.0
    connections: int = 4096


class BoundedProtocol(H11Protocol):
    """One connection; the application sees a missed deadline as a client that disconnected.

    `waiting` holds the listener's connections that owe a request head, oldest first.
    """

    def __init__(
        self, *arguments: Any, limits: ConnectionLimits, waiting: "dict[BoundedProtocol, None]", **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self._waiting = waiting
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the head's deadline; over the bound, evict a waiting connection, or refuse this one if none waits."""
        super().connection_made(transport)
        bound = transport.get_extra_info("socket")
        if bound is not None and bound.family in (socket.AF_INET, socket.AF_INET6):
            # Covers bytes that already left this process for the kernel's buffer.
            milliseconds = int(self._limits.send_seconds * 1000)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if len(self.connections) > self._limits.connections:
            if not self._waiting:
                transport.abort()
                return
            next(iter(self._waiting)).evict()
        self._await_head()

    def evict(self) -> None:
        """Close this connection to make room for another."""
        self._head_arrived()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse bytes; an incomplete head keeps its deadline."""
        super().data_received(data)
        self._await_head()

    def on_response_complete(self) -> None:
        """Start the deadline of the next head."""
        super().on_response_complete()
        self._await_head()

    def pause_writing(self) -> None:
        """The send buffer is full: start the peer's deadline to read."""
        super().pause_writing()
        self._send_timer = self._restart(self._send_timer, self._limits.send_seconds)

    def resume_writing(self) -> None:
        """The peer reads again: stop the deadline."""
        super().resume_writing()
        _cancel(self._send_timer)
        self._send_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel both timers."""
        self._head_arrived()
        _cancel(self._send_timer)
        self._send_timer = None
        super().connection_lost(exc)

    def _await_head(self) -> None:
        """Run the head's deadline while no response is under way; arriving bytes do not extend it."""
        if not getattr(self.cycle, "response_complete", True):
            self._head_arrived()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self._restart(None, self._limits.head_seconds)
            self._waiting[self] = None

    def _head_arrived(self) -> None:
        """Stop the head's deadline."""
        _cancel(self._head_timer)
        self._head_timer = None
        self._waiting.pop(self, None)

    def _restart(self, timer: asyncio.TimerHandle | None, seconds: float) -> asyncio.TimerHandle:
        """A timer that aborts the connection after `seconds`, in place of `timer`."""
        _cancel(timer)
        return self.loop.call_later(seconds, self.transport.abort)


class RefuseTwoLengths:
    """Middleware against request smuggling: refuses Content-Length together with Transfer-Encoding (RFC 9112, 6.3)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; a refused one ends its connection, so that nothing after it is parsed."""
        if scope["type"] == "http" and {name for name, _ in scope["headers"]} >= LENGTH_HEADERS:
            error = InvalidRequest("Send Content-Length or Transfer-Encoding, not both.")
            await problems.response(error, close=True)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def protocol_factory(limits: ConnectionLimits) -> Callable[..., BoundedProtocol]:
    """The protocol class of one listener, for uvicorn's `http=`."""
    waiting: dict[BoundedProtocol, None] = {}

    def make(*arguments: Any, **options: Any) -> BoundedProtocol:
        return BoundedProtocol(*arguments, limits=limits, waiting=waiting, **options)

    return make


def raise_file_limit(wanted: int) -> int:
    """Raise RLIMIT_NOFILE for `wanted` connections; returns how many fit, and warns if fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if 0 <= soft < needed:  # a negative limit is infinite
        raised = needed if hard < 0 else min(needed, hard)
        with suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    room = wanted if soft < 0 else min(wanted, soft - min(SPARE_FILES, soft // 2))
    if room < wanted:
        logger.warning(
            "At most %d connections instead of %d: the process may open only %d files (`ulimit -n`)", room, wanted, soft
        )
    return room
