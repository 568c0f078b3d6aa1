"""A flood of requests whose bodies never end, from clients without a key, beside probes and honest requests.

`python -m tests.exams.hostile.slow_bodies` prints its rows; the exit code is 1 if one does not hold.
"""

import http.client
import json
import re
import selectors
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.exams.client import serving
from tests.exams.hostile.peers import ASK, percentile
from tests.exams.row import Row, show
from tests.support.harness import KEY, ORIGIN

SESSION = f"POST /v1/widget/session HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\nContent-Length: 1000\r\n\r\n{{".encode()
"""An allowed origin, which anybody can write, and one byte of the body."""
SAID = "connections are taken"
PATIENCE = 2.0  # seconds that a probe waits for its answer


class Flood:
    """Holds `size` connections open, each of which has sent `start`; replaces connections that the server closes."""

    def __init__(self, url: str, size: int, start: bytes = SESSION) -> None:
        parts = urlsplit(url)
        self._address = (str(parts.hostname), parts.port or 0)
        self._size, self._start = size, start
        self._selector = selectors.DefaultSelector()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.opened = 0

    def _run(self) -> None:
        spoke = time.monotonic()
        while not self._stopped.is_set():
            for _ in range(min(50, self._size - len(self._selector.get_map()))):
                self._open()
            for key, _ in self._selector.select(0.01):
                self._selector.unregister(key.fileobj)
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
            if time.monotonic() - spoke > 1:
                spoke = time.monotonic()
                for key in self._selector.get_map().values():
                    with _ignored():
                        assert isinstance(key.fileobj, socket.socket)
                        key.fileobj.send(b" ")

    def _open(self) -> None:
        with _ignored():
            connection = socket.create_connection(self._address, timeout=PATIENCE)
            self.opened += 1
            self._selector.register(connection, selectors.EVENT_READ)
            connection.sendall(self._start)

    def start(self) -> None:
        """Open them all once, and go on in a thread."""
        self._thread.start()
        deadline = time.monotonic() + 30
        while self.opened < self._size and time.monotonic() < deadline:
            time.sleep(0.05)

    def stop(self) -> None:
        """Close every connection."""
        self._stopped.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()


@contextmanager
def _ignored() -> Iterator[None]:
    try:
        yield
    except OSError:
        return


@contextmanager
def flood(url: str, size: int, start: bytes = SESSION) -> Iterator[Flood]:
    """A flood until the end of the block."""
    made = Flood(url, size, start)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def probe(url: str, path: str, patience: float = PATIENCE) -> float | None:
    """Seconds until a 200 to a GET on a new connection; None if there is none within `patience` seconds."""
    return _timed(url, "GET", path, patience)


def chat(url: str, patience: float = PATIENCE) -> float | None:
    """Seconds of an authenticated chat on a new connection; None likewise."""
    return _timed(url, "POST", "/v1/chat/completions", patience, json.dumps(ASK))


def _timed(url: str, method: str, path: str, patience: float, body: str | None = None) -> float | None:
    started = time.monotonic()
    try:
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=patience)) as connection:
            connection.request(method, path, body, {"Authorization": f"Bearer {KEY}"} if body else {})
            response = connection.getresponse()
            response.read()
            return time.monotonic() - started if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None


def slow_bodies(connections: int = 200, factor: int = 10, count: int = 50, patience: float = PATIENCE) -> list[Row]:
    """`factor` times the limit of `connections` as slow bodies; `count` probes and chats meanwhile.

    Each has `patience` seconds, which is the bound; the test suite has a longer one, for busy machines.
    """
    with (
        tempfile.TemporaryDirectory(prefix="secateur-exam-") as name,
        serving(Path(name), connections=connections, tokens=8) as server,
    ):
        server.ready()
        with flood(server.url, factor * connections) as attack:
            time.sleep(1)
            health = [probe(server.url, "/healthz", patience) for _ in range(count)]
            ready = [probe(server.url, "/readyz", patience) for _ in range(count)]
            chats = [chat(server.url, patience) for _ in range(count)]
        after = probe(server.url, "/healthz", patience)
        closed = counted(server.admin)
        said = sum(SAID in line for line in server.output)
    name = f"{factor * connections} slow bodies without a key on {connections} connections"
    return [
        answered(name, "/healthz", health, patience),
        answered(name, "/readyz", ready, patience),
        answered(name, "chats with a key", chats, patience),
        Row(name, "an answer" if after is not None else "none", "an answer afterwards", after is not None),
        Row(name, f"{closed:.0f} of {attack.opened} counted as closed", "at least 1", closed > 0),
        Row(name, f"{said} warnings", "1 a minute", said == 1),
    ]


def answered(name: str, what: str, taken: list[float | None], patience: float) -> Row:
    """How many were answered, and how late."""
    seconds = sorted(one for one in taken if one is not None)
    late = f", p99 {1000 * percentile(seconds, 0.99):.0f} ms" if seconds else ""
    figure = f"{len(seconds)} of {len(taken)} {what} answered{late}"
    return Row(name, figure, f"all within {patience:.0f} s", len(seconds) == len(taken))


def counted(admin: str) -> float:
    """Connections closed for a body that did not come, as the metrics count them."""
    with urllib.request.urlopen(f"{admin}/metrics", timeout=120) as answer:
        lines: str = answer.read().decode()
    return sum(map(float, re.findall(r'^secateur_connections_closed_total\{.*owed="body".*\} (\S+)$', lines, re.M)))


def main() -> int:
    """Print the rows."""
    return show(slow_bodies())


if __name__ == "__main__":
    sys.exit(main())
