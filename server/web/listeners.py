"""Several HTTP listeners in one process and one event loop, which stop together and without cutting a reply.

SIGTERM or SIGINT drains: /readyz turns 503, new requests are refused with Retry-After, running replies finish until
the deadline and are then ended with what they have. A second signal makes the deadline now, and ends the process soon
after, whatever hangs: a pass of the model, a lock on the ledger. Its rows are then closed at the next start.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence

import uvicorn
from msgspec.structs import replace
from starlette.types import ASGIApp

from server.config import Config
from server.errors import ConfigError
from server.models.rollout import Rollout
from server.web.app import Apps, Parts, build
from server.web.http.events import quiet
from server.web.http.protocol import BACKLOG, OTHERS, OneLength, Patience, protocol, room_for

POLL_SECONDS = 0.05
WATCH_SECONDS = 0.25
CLOSE_SECONDS = 5
FORCE_SECONDS = 10
logger = logging.getLogger(__name__)
MAX_HEADER = 32 * 1024


class Listener(uvicorn.Server):
    """A uvicorn server for one bound socket, which leaves the process's signals alone."""

    def __init__(
        self,
        app: ASGIApp,
        bound: socket.socket,
        trusted_proxies: Sequence[str] = (),
        patience: Patience = Patience(),  # noqa: B008  (frozen)
    ) -> None:
        self.bound = bound
        super().__init__(
            uvicorn.Config(
                OneLength(app),
                http=protocol(patience),  # type: ignore[arg-type]  # h11: httptools accepts headers of any length
                h11_max_incomplete_event_size=MAX_HEADER,
                backlog=BACKLOG,
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

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """`serve` below has them."""
        yield

    async def run_until_told(self) -> None:
        """Serve until `should_exit`."""
        await self.serve(sockets=[self.bound])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; raises ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # With the protocol named, asyncio sets TCP_NODELAY; without, each event waits 40 ms for an acknowledgement.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen()  # who connects from now on waits, and is not refused
        return bound
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
        await settled(apps)  # those that uvicorn had to cancel


async def drain(apps: Apps, seconds: float, hurry: asyncio.Event) -> None:
    """Wait for the running replies, at most so long; then end them and wait until they are settled."""
    apps.replies.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not apps.replies.idle and not hurry.is_set():
                await asyncio.sleep(POLL_SECONDS)
    apps.replies.interrupt()
    await settled(apps)


async def settled(apps: Apps) -> None:
    """Wait until no reply is under way, at most a few seconds: a reader that does not read may hold one up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            while not apps.replies.idle:
                await asyncio.sleep(POLL_SECONDS)


async def serve_until_signalled(parts: Parts, apps: Apps, listeners: Sequence[Listener], early: Sequence[int]) -> int:
    """`serve` until SIGTERM or SIGINT, 0, or until an engine fails, 1; SIGHUP, also an `early` one, rereads skills."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(apps.reloader.on_signal())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    def end() -> None:
        if told:
            force()
        told.append(True)
        stop.set()

    told: list[bool] = []
    loop.add_signal_handler(signal.SIGHUP, reload)
    if early:
        reload()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    failing = loop.create_task(failed(parts.rollout, apps, stop))
    await serve(apps, listeners, drain_seconds=parts.config.drain_seconds, stop=stop)
    return int(await failing)


async def failed(rollout: Rollout, apps: Apps, stop: asyncio.Event) -> bool:
    """Whether an engine ended before it was told to; then stops the server, since only a new process brings it back."""
    while not apps.replies.draining:
        if (reason := rollout.failure) is not None:
            logger.error("The server ends, so that whoever started it can start it again: %s", reason)
            stop.set()
            return True
        await asyncio.sleep(WATCH_SECONDS)
    return False


def force() -> None:
    """End the process a few seconds from now, if it has not ended by itself."""

    def leave() -> None:
        logger.error(
            "Something did not end in %d seconds after the second signal; the process leaves it", FORCE_SECONDS
        )
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(FORCE_SECONDS, leave)
    timer.daemon = True
    timer.start()


def bind_all(config: Config) -> dict[str, socket.socket]:
    """A listening socket for each listener of `config`, by what it serves; ConfigError if one cannot be had."""
    wanted = {"skills": (config.host, config.port), "metrics": (config.admin_host, config.admin_port)}
    if config.page_port is not None:
        wanted["page"] = (config.host, config.page_port)
    with contextlib.ExitStack() as bound:
        sockets = {what: bound.enter_context(bind(*place)) for what, place in wanted.items()}
        bound.pop_all()
        return sockets


def run(parts: Parts, early: Sequence[int] = ()) -> int:
    """Bind every listener, say where they are, and serve: as `serve_until_signalled`."""
    bound = bind_all(parts.config)
    config = replace(parts.config, port=bound["skills"].getsockname()[1])  # the page names it, also where 0 was asked
    parts = replace(parts, config=config)
    apps = build(parts)
    served = {"skills": apps.public, "metrics": apps.admin, "page": apps.page}
    room = {"skills": room_for(config.connections)}
    listeners = {
        what: Listener(app, one, config.trusted_proxies, patience_of(config, room.get(what, OTHERS)))
        for what, one in bound.items()
        if (app := served[what]) is not None
    }
    announce(parts, apps, {what: address(listener.bound) for what, listener in listeners.items()})
    return asyncio.run(serve_until_signalled(parts, apps, list(listeners.values()), early))


def patience_of(config: Config, connections: int) -> Patience:
    """With whoever is slow, on a listener of so many connections."""
    return Patience(config.head_seconds, config.send_seconds, min(connections, config.connections))


def announce(parts: Parts, apps: Apps, addresses: dict[str, str]) -> None:
    """Print what is served where, and each automatic choice with its reason."""
    for model in parts.rollout.models:
        names = [skill.name for skill in parts.skills if parts.rollout.of(skill.model) is model]
        print(f"{model.name}: skills {', '.join(names)}")
        for choice in model.choices:
            print(f"  {choice.subject}: {choice.kernel} ({choice.reason})")
        print(f"  counting: {model.tokenizer.encoding_reason}")
    if parts.ledger.recovered:
        print(f"  ledger: {parts.ledger.recovered} replies of a server that died were closed as `recovered`")
    print(f"API      {addresses['skills']}/v1")
    print(f"metrics  {addresses['metrics']}/metrics{' (with a key of `admin_keys`)' * bool(parts.config.admin_keys)}")
    print(f"usage    {addresses['metrics']}/admin")
    if apps.page is not None:
        print(f"page     {addresses['page']}/")
    print("Stop with Ctrl-C.", flush=True)
