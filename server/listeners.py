"""Several HTTP listeners in one process and one event loop, which stop together and without cutting a reply.

SIGTERM or SIGINT drains: /readyz turns 503, new requests are refused with Retry-After, running replies finish until
the deadline and are then ended with what they have; a second signal makes the deadline now.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

from server.api.events import quiet
from server.app import Apps
from server.errors import ConfigError

POLL_SECONDS = 0.05
CLOSE_SECONDS = 5
MAX_HEADER = 32 * 1024


class Listener(uvicorn.Server):
    """A uvicorn server for one bound socket, which leaves the process's signals alone."""

    def __init__(self, app: ASGIApp, bound: socket.socket) -> None:
        self.bound = bound
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",  # httptools accepts headers of any length
                h11_max_incomplete_event_size=MAX_HEADER,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        """`serve` below has them."""
        yield

    async def run_until_told(self) -> None:
        """Serve until `should_exit`."""
        await self.serve(sockets=[self.bound])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; raises ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def address(bound: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(apps: Apps, listeners: Sequence[Listener], *, drain_seconds: float, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then drain; set again while draining, it ends the replies at once."""
    quiet()
    async with apps.running:
        tasks = [asyncio.create_task(listener.run_until_told()) for listener in listeners]
        stopped = asyncio.create_task(stop.wait())
        # A listener that ends by itself has failed: the others stop too, and its error is raised below.
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stop.clear()
        await drain(apps, drain_seconds, stop)
        for listener in listeners:
            listener.should_exit = True
        stopped.cancel()
        await asyncio.gather(*tasks)


async def drain(apps: Apps, seconds: float, hurry: asyncio.Event) -> None:
    """Wait for the running replies, at most so long; then end them and wait until they are settled."""
    apps.replies.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not apps.replies.idle and not hurry.is_set():
                await asyncio.sleep(POLL_SECONDS)
    apps.replies.interrupt()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            while not apps.replies.idle:
                await asyncio.sleep(POLL_SECONDS)


async def serve_until_signalled(apps: Apps, listeners: Sequence[Listener], *, drain_seconds: float) -> None:
    """`serve` until SIGTERM or SIGINT."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(apps, listeners, drain_seconds=drain_seconds, stop=stop)
