"""Hostile clients over raw sockets, for the exam at full size and for tests at a small one."""

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
    """A connection that waits at most ten seconds for anything."""
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), parts.port or 0), timeout=10)


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def seconds_of(url: str, count: int) -> list[float]:
    """How long each of so many ordinary requests took, sorted; every one must succeed."""
    taken = []
    for _ in range(count):
        started = time.monotonic()
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(ASK), {"Authorization": f"Bearer {KEY}"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
        taken.append(time.monotonic() - started)
    return sorted(taken)


def percentile(taken: Sequence[float], part: float) -> float:
    """The value below which this part of sorted values lies."""
    return taken[min(len(taken) - 1, int(part * len(taken)))]


@contextmanager
def slow_heads(url: str, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that have begun a request's head and do not end it."""
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
    """One more byte from each that is still open."""
    for connection in connections:
        try:
            connection.send(b"a")
        except OSError:
            continue


def closed(connections: Sequence[socket.socket], seconds: float) -> int:
    """How many of them the server has closed within so many seconds, while each goes on sending a byte a second."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
        gone, deadline, spoke = 0, time.monotonic() + seconds, 0.0
        while gone < len(connections) and time.monotonic() < deadline:
            if time.monotonic() - spoke > 1:
                trickle(connections)
                spoke = time.monotonic()
            for key, _ in selector.select(0.2):
                selector.unregister(key.fileobj)
                gone += 1
    return gone


def huge_header(url: str, size: int) -> bytes:
    """What comes back for a header of so many bytes; empty if the server cuts the connection first."""
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
    """What comes back for a body that is declared so large, of which so much is sent."""
    with connect(url) as connection:
        try:
            connection.sendall(HEAD + f"Content-Length: {declared}\r\n\r\n".encode())
            for _ in range(sent >> 16):
                connection.sendall(b"a" * (1 << 16))
        except OSError:
            pass
        return _answer(connection)


def never_read(url: str) -> socket.socket:
    """A connection that has asked for far more than any buffer holds, and reads none of it."""
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
        pass  # the server stopped to read, as it should
    return connection


def descriptors(pid: int) -> int:
    """Open files and connections of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def settle(condition: Callable[[], bool], seconds: float) -> float | None:
    """How long it took until the condition held, or None if it never did."""
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
    """Send one byte more to a connection that does not block; whether the server has closed it."""
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
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)) as connection:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
