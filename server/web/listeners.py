"""HTTP listeners in one event loop: they serve ASGI apps on bound sockets, and close together after a drain."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from server.errors import ConfigError
from server.web.http.connections import ClosedConnections
from server.web.http.protocol import ACCEPTED, BACKLOG, ConnectionLimits, RefuseTwoLengths, protocol_factory

POLL_SECONDS = 0.05
CLOSE_SECONDS = 5
MAX_HEADER_BYTES = 32 * 1024


class Drainable(Protocol):
    """The work behind the listeners, which must end before they close."""

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""

    def drain(self) -> None:
        """Refuse new work."""

    def interrupt(self) -> None:
        """End the work under way now, with what it has."""


class Listener(uvicorn.Server):
    """A uvicorn server for `app` on one bound socket; it installs no signal handlers.

    `closed` counts the connections that it closes.
    """

    def __init__(
        self,
        app: ASGIApp,
        bound: socket.socket,
        trusted_proxies: Sequence[str] = (),
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008  (frozen)
        closed: ClosedConnections | None = None,
    ) -> None:
        self.bound = bound
        super().__init__(
            uvicorn.Config(
                RefuseTwoLengths(app),
                http=protocol_factory(limits, closed or ClosedConnections()),  # type: ignore[arg-type]  # h11: httptools accepts headers of any length
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                backlog=ACCEPTED,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=list(trusted_proxies),
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Override: shorten the accept queue, all of which asyncio accepts in one turn, delaying running replies."""
        await super().startup(sockets)
        self.bound.listen(BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Override: `server.web.signals` handles the process's signals."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY; without it, each event waits 40 ms for an ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen()  # clients that connect during the start wait instead of being refused
        return bound
    except OSError as error:
        bound.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def address(bound: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(listeners: Sequence[Listener], work: Drainable, *, drain_seconds: float, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then drain `work` and close; `stop` set again ends the drain early.

    Raises the error of a listener that ended by itself, after closing the others.
    """
    tasks = [asyncio.create_task(listener.serve(sockets=[listener.bound])) for listener in listeners]
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    stop.clear()
    await drain(work, drain_seconds, stop)
    for listener in listeners:
        listener.should_exit = True
    stopped.cancel()
    await asyncio.gather(*tasks)
    await settled(work)  # requests that uvicorn cancelled


async def drain(work: Drainable, seconds: float, hurry: asyncio.Event) -> None:
    """Give running work up to `seconds`, or until `hurry` is set; then interrupt what is left."""
    work.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not work.idle and not hurry.is_set():
                await asyncio.sleep(POLL_SECONDS)
    work.interrupt()
    await settled(work)


async def settled(work: Drainable) -> None:
    """Wait until `work` is idle, at most CLOSE_SECONDS: a client that does not read can hold a reply up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            while not work.idle:
                await asyncio.sleep(POLL_SECONDS)
