"""The server process's signals: SIGTERM and SIGINT stop it, SIGHUP reloads its skills.

A second SIGTERM or SIGINT cuts the drain short, and kills the process if it then hangs (in a forward pass, or on a
locked ledger). The next start closes the ledger rows left open.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable

FORCE_SECONDS = 10
logger = logging.getLogger(__name__)


class Signals:
    """Handlers on the running event loop; `stop` is set by SIGTERM and SIGINT, `reload` is awaited on SIGHUP."""

    def __init__(self, stop: asyncio.Event, reload: Callable[[], Awaitable[None]]) -> None:
        self._stop = stop
        self._reload = reload
        self._reloads: set[asyncio.Future[None]] = set()  # asyncio keeps only weak references to tasks
        self._stopping = False

    def install(self) -> None:
        """Replace the process's handlers."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    def reload(self) -> None:
        """Start a reload, as SIGHUP does."""
        task = asyncio.ensure_future(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def stop(self) -> None:
        """Stop the server, as SIGTERM does; the second call sets a deadline for the whole process."""
        if self._stopping:
            exit_later()
        self._stopping = True
        self._stop.set()


def exit_later() -> None:
    """Kill the process with exit code 1 after FORCE_SECONDS, unless it has ended by then."""

    def leave() -> None:
        logger.error("Killed: something still hung %d seconds after the second signal", FORCE_SECONDS)
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(FORCE_SECONDS, leave)
    timer.daemon = True
    timer.start()
