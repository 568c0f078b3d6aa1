"""The backends of a remote engine: which are alive, and which takes the next request.

A request goes to the backend that its prefix prefers (rendezvous hashing), unless that has SLACK requests more than the
least loaded one, so that prefixes stay warm and a busy skill spreads.
"""

import hashlib
import http.client
import logging
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from server.engine.remote.http_stream import Target
from server.errors import Overloaded

SLACK = 2
PROBE_SECONDS = 2.0
RETRY_SECONDS = 5
KV_GAUGE = "vllm:kv_cache_usage_perc"
logger = logging.getLogger(__name__)


class Backend:
    """One server that generates."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.load = 0
        """Requests that this process has on it."""
        self.alive = True
        self.kv_used_ratio = 0.0

    @contextmanager
    def using(self) -> Iterator[None]:
        """Count a request."""
        self.load += 1
        try:
            yield
        finally:
            self.load -= 1

    def failed(self, why: str) -> None:
        """Note that it does not answer; the next probe that succeeds brings it back."""
        if self.alive:
            logger.error("The backend %s does not answer: %s", self.target.url, why)
        self.alive = False

    def probe(self) -> None:
        """Ask for its health and its cache's use; called by the probing thread."""
        try:
            status, _ = _get(self.target, self.target.health)
            if status != 200:
                self.failed(f"{self.target.health} has status {status}")
                return
            _, text = _get(self.target, "/metrics")
        except (OSError, http.client.HTTPException) as error:
            self.failed(str(error) or type(error).__name__)
            return
        if not self.alive:
            logger.warning("The backend %s answers again.", self.target.url)
        self.alive = True
        used = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(KV_GAUGE)]
        self.kv_used_ratio = max(used, default=0.0)


class Backends:
    """Backends that serve one model, probed every PROBE_SECONDS by a thread between `start` and `stop`."""

    def __init__(self, targets: Sequence[Target], *, probe_seconds: float = PROBE_SECONDS) -> None:
        self.all = tuple(map(Backend, targets))
        self._probe_seconds = probe_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backends", daemon=True)

    def start(self) -> None:
        """Begin to probe."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def choose(self, prefix: str, tried: frozenset[Backend]) -> Backend:
        """The backend for a prompt that begins as `prefix`, none of `tried`; raises Overloaded if there is none."""
        left = [one for one in self.all if one not in tried]
        ready = [one for one in left if one.alive] or left
        if not ready:
            raise Overloaded("The model's backends do not answer; try again later.", retry_after=RETRY_SECONDS)
        least = min(one.load for one in ready)
        near = [one for one in ready if one.load <= least + SLACK]
        return max(near, key=lambda one: hashlib.sha256(f"{prefix} {one.target.url}".encode()).digest())

    def _run(self) -> None:
        while True:
            for backend in self.all:
                backend.probe()
            if self._stopped.wait(self._probe_seconds):
                return


def _get(target: Target, path: str) -> tuple[int, str]:
    """Status and text of a GET."""
    host, port = target.address
    connection: http.client.HTTPConnection
    if target.tls is not None:
        connection = http.client.HTTPSConnection(host, port, timeout=target.connect_seconds, context=target.tls)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=target.connect_seconds)
    try:
        connection.request("GET", urlsplit(target.url).path.rstrip("/") + path, headers=dict(target.headers))
        response = connection.getresponse()
        return response.status, response.read(1 << 22).decode(errors="replace")
    finally:
        connection.close()


def tls_of(ca: str | None) -> ssl.SSLContext:
    """A context that verifies the backend, by the file of authorities `ca` or the system's; raises OSError."""
    return ssl.create_default_context(cafile=ca)
