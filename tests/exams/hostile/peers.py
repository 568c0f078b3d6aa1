"""Hostile clients over raw sockets, at full size in the exam and at a small one in tests."""

import http.client
import json
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.harness import KEY

ASK: dict[str, Any] = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n"


def connect(url: str) -> socket.socket:
    """A connection whose operations time out after two minutes."""
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), parts.port or 0), timeout=120)


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def seconds_of(url: str, count: int) -> list[float]:
    """Durations of `count` ordinary requests in seconds, sorted; each must succeed."""
    taken = []
    for _ in range(count):
        started = time.monotonic()
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(ASK), {"Authorization": f"Bearer {KEY}"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
        taken.append(time.monotonic() - started)
    return sorted(taken)


def percentile(taken: Sequence[float], part: float) -> float:
    """The quantile `part` of sorted values."""
    return taken[min(len(taken) - 1, int(part * len(taken)))]


@contextmanager
def slow_heads(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Open `count` connections that begin a request's head and never finish it."""
    connections: list[socket.socket] = []
    try:
        for _ in range(count):
            connections.append(connect(url))
            connections[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: a")
        yield connections
    finally:
        for connection in connections:
            connection.close()


def trickle(connections: Sequence[socket.socket]) -> None:
    """Send a byte on each open connection."""
    for connection in connections:
        try:
            connection.send(b"a")
        except OSError:
            continue


def closed(connections: Sequence[socket.socket], seconds: float = 120.0, enough: int | None = None) -> int:
    """Number of connections that the server closes while each sends a byte a second.

    Returns once `enough` are closed (by default all of them), or after `seconds`.
    """
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
        gone, deadline, spoke = 0, time.monotonic() + seconds, 0.0
        while gone < (enough or len(connections)) and time.monotonic() < deadline:
            if time.monotonic() - spoke > 1:
                trickle(connections)
                spoke = time.monotonic()
            for key, _ in selector.select(0.2):
                selector.unregister(key.fileobj)
                gone += 1
    return gone


def huge_header(url: str, size: int) -> bytes:
    """Response to a header of `size` bytes; empty if the server cuts the connection first."""
    with connect(url) as connection:
        sent, block = 0, b"a" * (1 << 16)
        try:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Big: ")
            while sent < size:
                connection.sendall(block)
                sent += len(block)
        except OSError:
            pass
        return _answer(connection)


def huge_body(url: str, declared: int, sent: int) -> bytes:
    """Response to a body of which `declared` bytes are announced and at most `sent` are sent."""
    with connect(url) as connection:
        try:
            connection.sendall(HEAD + f"Content-Length: {declared}\r\n\r\n".encode())
            for _ in range(sent >> 16):
                connection.sendall(b"a" * (1 << 16))
        except OSError:
            pass
        return _answer(connection)


def never_read(url: str) -> socket.socket:
    """A connection that requests far more than any buffer holds and never reads."""
    parts = urlsplit(url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(2)
    connection.connect((str(parts.hostname), parts.port or 0))
    request = b"GET /widget.js HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        for _ in range(100):
            connection.sendall(request * 100)
    except OSError:
        pass  # the server stopped reading, as it should
    return connection


def descriptors(pid: int) -> int:
    """Number of a process's open files and connections."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def settle(condition: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until the condition held, or None if it did not within `seconds`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            return None
        time.sleep(0.05)
    return time.monotonic() - started


def _answer(connection: socket.socket) -> bytes:
    try:
        return connection.recv(200)
    except OSError:
        return b""


def cut(connection: socket.socket) -> bool:
    """Send a byte on a non-blocking connection; returns whether the server has closed it."""
    try:
        connection.send(b"a")
        return connection.recv(65536) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def answers(url: str) -> bool:
    """Whether the server answers a new connection."""
    try:
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
