"""Concurrency: 200 requests race for the end of a budget, and a thousand clients vanish."""

import random
import socket
import sqlite3
import statistics
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

from msgspec import Struct

from tests.exams.client import STREAM, Server, ask, connect, serving
from tests.support.harness import until

LAST = 1000
PATIENCE = 120.0  # seconds


class Race(Struct):
    """The result of requests that together exceed what a budget has left."""

    asked: int
    served: int
    refused: int
    used: int
    left: int
    """Tokens that the budget had left."""

    @property
    def good(self) -> bool:
        """Whether the budget was used up and not exceeded."""
        return self.used <= self.left and self.refused > 0 and self.used > self.left * 0.9


def race(folder: Path, *, requests: int) -> Race:
    """Send all requests at once, each for at most 60 tokens."""
    with serving(folder, day=LAST, tokens=60) as server:
        server.ready()
        with ThreadPoolExecutor(requests) as pool:
            answers = list(pool.map(lambda _: ask(server.url), range(requests)))
        with closing(sqlite3.connect(folder / "usage.sqlite3")) as database:
            [(used,)] = database.execute("SELECT sum(prompt_tokens + output_tokens) FROM requests")
    statuses = [answer.status for answer in answers]
    return Race(requests, statuses.count(200), statuses.count(429), used, LAST)


class Vanished(Struct):
    """What remains after clients closed, reset or stopped reading."""

    clients: int
    median: float
    """Seconds from a client's close until its row was settled."""
    slowest: float
    unsettled: int
    running: float
    waiting: float
    cache: float
    descriptors: int
    """Open files beyond those before the clients came."""

    @property
    def good(self) -> bool:
        """Whether all was settled within a second and nothing leaked."""
        left = self.unsettled + self.running + self.waiting + self.cache + max(0, self.descriptors)
        return left == 0 and self.slowest <= 1.0


def vanish(folder: Path, *, clients: int, at_once: int = 32, seed: int = 1) -> Vanished:
    """Clients leave at random: before the first byte, mid-stream, or after they stopped reading."""
    draw = random.Random(seed)
    plans = [(draw.choice(["close", "reset", "stop reading"]), draw.uniform(0, 0.3)) for _ in range(clients)]
    with serving(folder, tokens=400) as server:
        server.ready()
        ask(server.url)
        server.metric("secateur_requests_running")  # SQLite keeps a reader's descriptor for reuse
        before = min(_watched(server))
        with ThreadPoolExecutor(at_once) as pool:
            left = dict(filter(None, pool.map(lambda plan: leave(server, *plan), plans)))
        with suppress(AssertionError):  # leftovers are reported
            until(lambda: server.metric("secateur_requests_running") == 0, PATIENCE)
            until(lambda: _open(folder) == 0, PATIENCE)
        with closing(sqlite3.connect(folder / "usage.sqlite3")) as database:
            rows = database.execute("SELECT request_id, opened_at, closed_at FROM requests").fetchall()
        lags = [closed - max(opened, left[name]) for name, opened, closed in rows if name in left]
        gauges = ("secateur_requests_running", "secateur_requests_waiting", "secateur_kv_cache_usage_ratio")
        running, waiting, cache = (server.metric(name) for name in gauges)
        with suppress(AssertionError):  # last, since reading a metric opens a connection
            until(lambda: server.descriptors() <= before, PATIENCE)
        more = server.descriptors() - before
        return Vanished(clients, statistics.median(lags), max(lags), _open(folder), running, waiting, cache, more)


def leave(server: Server, how: str, seconds: float) -> tuple[str, float] | None:
    """Ask, read a while or not at all, and leave; returns the row's id and the wall-clock time of leaving."""
    connection = connect(server.url, STREAM)
    raw = b""
    deadline = time.monotonic() + seconds
    connection.settimeout(0.05)
    while how != "stop reading" and time.monotonic() < deadline:
        try:
            raw += connection.recv(4096)
        except TimeoutError:
            continue
    if how == "stop reading":
        connection.settimeout(5)
        with suppress(TimeoutError):
            raw = connection.recv(600)
        time.sleep(seconds)
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    start = raw.find(b"x-request-id: ")
    name = raw[start + 14 :].split(b"\r\n")[0].decode() if start >= 0 else ""
    return (name, time.time()) if name else None


def _watched(server: Server) -> Iterator[int]:
    """Counts of its descriptors over half a second, in which the last metrics connection closes."""
    for _ in range(10):
        time.sleep(0.05)
        yield server.descriptors()


def _open(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "usage.sqlite3")) as database:
        return int(database.execute("SELECT count(*) FROM requests WHERE state = 'open'").fetchone()[0])
