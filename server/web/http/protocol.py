"""The h11 protocol with deadlines for slow peers and a bound on connections.

A request's head must arrive within `head_seconds` of the connection or of the previous response. A peer that reads
nothing for `send_seconds` is disconnected, which frees its reply. `requests.read_body` has the deadline for bodies. A
connection beyond the bound replaces the one that has waited longest for a head, a body or a peer that reads. If none
waits, RESERVED connections more are accepted, which answer health probes and refuse everything else.
"""

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h11
from msgspec import Struct, field
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import InvalidRequest, Overloaded
from server.web.http import problems
from server.web.http.connections import ClosedConnections, Debt

BACKLOG = 256  # connections the kernel queues before they are accepted
ACCEPTED = 16  # of them, in one turn of the event loop
RESERVED = 3 * ACCEPTED  # connections beyond the bound, for PROBES: more than can arrive before one is read
PROBES = {"/health", "/healthz", "/readyz"}
SPARE_FILES = 512  # descriptors kept free for files, the other listeners, RESERVED and a full backlog
ADMIN_CONNECTIONS = 64  # on each listener but the public one
LENGTH_HEADERS = {b"content-length", b"transfer-encoding"}
FULL_RETRY_SECONDS = 5
logger = logging.getLogger(__name__)


class ConnectionLimits(Struct, frozen=True):
    """Deadlines of each connection, and the most open connections of a listener."""

    head_seconds: float = 10.0
    send_seconds: float = 30.0
    connections: int = 4096


class Peers(Struct, frozen=True):
    """What the connections of one listener share."""

    limits: ConnectionLimits
    closed: ClosedConnections
    debts: "dict[BoundedProtocol, Debt]" = field(default_factory=dict)
    """The connections whose peer owes something, oldest debt first."""


class BoundedProtocol(H11Protocol):
    """One connection; the application sees a missed deadline as a client that disconnected."""

    def __init__(self, *arguments: Any, peers: Peers, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._peers = peers
        self._limits = peers.limits
        self._reserved = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._served = self.app
        self.app = self._serve

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the head's deadline; over the bound, make room or refuse this connection."""
        super().connection_made(transport)
        bound = transport.get_extra_info("socket")
        if bound is not None and bound.family in (socket.AF_INET, socket.AF_INET6):
            # Covers bytes that already left this process for the kernel's buffer.
            milliseconds = int(self._limits.send_seconds * 1000)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if self._full and not self._make_room():
            self._peers.closed.refused(self._limits.connections)
            self._abort()
            return
        self._note_debt()

    def data_received(self, data: bytes) -> None:
        """Parse bytes; more of an incomplete head or body does not extend its deadline or save it from eviction."""
        super().data_received(data)
        self._note_debt()

    def on_response_complete(self) -> None:
        """Start the deadline of the next head."""
        super().on_response_complete()
        self._note_debt()

    def pause_writing(self) -> None:
        """The send buffer is full: start the peer's deadline to read."""
        super().pause_writing()
        self._send_timer = self._restart(self._send_timer, self._limits.send_seconds)
        self._note_debt()

    def resume_writing(self) -> None:
        """The peer reads again: stop the deadline."""
        super().resume_writing()
        _cancel(self._send_timer)
        self._send_timer = None
        self._note_debt()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel both timers."""
        if isinstance(exc, TimeoutError):  # TCP_USER_TIMEOUT
            self._peers.closed.late("read")
        self._forget()
        super().connection_lost(exc)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application; a reserved connection serves only probes while the others are in use."""
        self._reserved = self._reserved and self._full
        if self._reserved and scope["path"] not in PROBES:
            self._peers.closed.refused(self._limits.connections)
            error = Overloaded("All connections are in use.", retry_after=FULL_RETRY_SECONDS)
            await problems.response(error, close=True)(scope, receive, send)
            return
        await self._served(scope, receive, send)

    @property
    def _full(self) -> bool:
        """Whether the listener has more connections than its bound."""
        return len(self.connections) > self._limits.connections

    def _make_room(self) -> bool:
        """Evict the connection that has waited longest, or else take a reserved place; False if neither is possible."""
        oldest = next((peer for peer in self._peers.debts if not peer._reserved), None)
        if oldest is None:
            self._reserved = True
            if len(self.connections) <= self._limits.connections + RESERVED:
                return True
            oldest = next(iter(self._peers.debts), None)
        if oldest is None:
            return False
        self._peers.closed.evicted(self._peers.debts[oldest], self._limits.connections)
        oldest._abort()
        return True

    def _abort(self) -> None:
        """Close the connection at once, discarding unsent data, and remove it from the connections in use."""
        self._forget()
        self.connections.discard(self)  # now, since uvicorn's own connection_lost runs later
        self.transport.abort()

    def _note_debt(self) -> None:
        """Record what the server waits for, and run the head's deadline while no response is under way.

        Arriving bytes do not restart a wait: it keeps its deadline and its place in the order of eviction.
        """
        if self.transport.is_closing():
            return
        idle = getattr(self.cycle, "response_complete", True)
        debt = self._debt(idle)
        if debt is None:
            self._peers.debts.pop(self, None)
        else:
            self._peers.debts[self] = debt
        if not idle:
            _cancel(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self._restart(None, self._limits.head_seconds)

    def _debt(self, idle: bool) -> Debt | None:
        """What the server waits for from the client now, if anything; `idle`: no response is under way."""
        if self._send_timer is not None:
            return "read"
        if idle:
            return "body" if self.conn.their_state is h11.SEND_BODY else "head"
        return "body" if self.cycle.more_body else None

    def _forget(self) -> None:
        """Cancel both timers, and take the connection out of the order of eviction."""
        _cancel(self._head_timer)
        _cancel(self._send_timer)
        self._head_timer = self._send_timer = None
        self._peers.debts.pop(self, None)

    def _restart(self, timer: asyncio.TimerHandle | None, seconds: float) -> asyncio.TimerHandle:
        """A timer that aborts the connection after `seconds`, in place of `timer`."""
        _cancel(timer)
        return self.loop.call_later(seconds, self._miss_deadline)

    def _miss_deadline(self) -> None:
        """Close a connection that missed its deadline."""
        self._peers.closed.late(self._peers.debts.get(self, "read"))
        self._abort()


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


def protocol_factory(limits: ConnectionLimits, closed: ClosedConnections) -> Callable[..., BoundedProtocol]:
    """The protocol class of one listener, for uvicorn's `http=`."""
    peers = Peers(limits, closed)

    def make(*arguments: Any, **options: Any) -> BoundedProtocol:
        return BoundedProtocol(*arguments, peers=peers, **options)

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
