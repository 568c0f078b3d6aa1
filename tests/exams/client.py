"""Plain sockets and processes for exams: what left the server is counted byte by byte."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.conftest import ROOT
from tests.support.harness import KEY

PROMPT = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**PROMPT, "stream": True, "stream_options": {"include_usage": True}}


class Server:
    """A server in a process of its own; `opened` is the time its ledger took to open in seconds, recovery included."""

    def __init__(
        self, folder: Path, settings: Mapping[str, object], module: str = "tests.exams.servers.exam_server"
    ) -> None:
        pairs = [f"{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", module, str(folder), *pairs]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ},
        )
        self.output: list[str] = []
        self.url = self.admin = ""
        self.opened = 0.0
        assert self.process.stdout
        for line in self.process.stdout:
            self.output.append(line)
            self.url = line.split()[1].removesuffix("/v1") if line.startswith("API") else self.url
            self.admin = line.split()[1].removesuffix("/metrics") if line.startswith("metrics") else self.admin
            self.opened = float(line.split()[2]) if line.startswith("opened in") else self.opened
            if line.startswith("Stop with"):
                break
        if not self.url:
            raise RuntimeError("the server did not start:\n" + "".join(self.output))
        self.announced = time.monotonic()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.output += self.process.stdout

    def kill(self) -> None:
        """Send SIGKILL: no handler runs, as when the power fails."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout
        self.process.stdout.close()

    def ready(self, seconds: float = 120.0) -> float:
        """Wait until /readyz answers 200; returns that moment on the monotonic clock."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if status(f"{self.url}/readyz") == 200:
                return time.monotonic()
            time.sleep(0.02)
        raise RuntimeError("the server did not become ready")

    def metric(self, name: str) -> float:
        """Value of a gauge of the only model."""
        with urllib.request.urlopen(f"{self.admin}/metrics", timeout=120) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(f"{name}{{")))

    def descriptors(self) -> int:
        """Number of the process's open files and sockets."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def alive(self) -> bool:
        """Whether the process is running."""
        return self.process.poll() is None


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[Server]:
    """Run a server until the end of the block."""
    server = Server(folder, settings)
    try:
        yield server
    finally:
        server.kill()


def status(url: str) -> int:
    """HTTP status of a GET; 0 if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=120) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            return error.code
    except OSError:
        return 0


def connect(url: str, body: Mapping[str, Any], headers: str = "") -> socket.socket:
    """Send a request; returns the connection, whose response `read` reads."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=120)
    content = json.dumps(body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
    try:
        connection.sendall(f"{head}{headers}Content-Length: {len(content)}\r\n\r\n{content}".encode())
    except OSError:
        connection.close()
        raise
    return connection


class Read(Struct):
    """One client's response: its row's id, text, reported usage, status, and whether it ended."""

    status: int = 0
    request_id: str = ""
    text: str = ""
    usage: dict[str, Any] | None = None
    done: bool = False


def read(connection: socket.socket) -> Read:
    """Read and parse a response until its connection closes or breaks."""
    raw = b""
    with connection, suppress(OSError):
        while chunk := connection.recv(65536):
            raw += chunk
    return parsed(raw)


def parsed(raw: bytes) -> Read:
    """Parse the bytes of a stream, whose last event may be truncated."""
    found = Read(status=int(raw[9:12]) if raw.startswith(b"HTTP/1.1 ") else 0)
    for event in raw.decode(errors="replace").replace("\r\n", "\n").split("\n\n")[:-1]:
        data = event[event.find("data: ") + 6 :] if "data: " in event else ""
        if data == "[DONE]":
            found.done = True
        elif data.startswith("{"):
            value = json.loads(data)
            found.request_id = value.get("id", "").replace("chatcmpl-", "req_") or found.request_id
            found.usage = value.get("usage") or found.usage
            for choice in value.get("choices", ()):
                found.text += choice["delta"].get("content", "")
    return found


def ask(url: str, body: Mapping[str, Any] = STREAM, headers: str = "") -> Read:
    """Send a request and read its response; an empty one if the server is gone."""
    try:
        return read(connect(url, body, headers))
    except OSError:
        return Read()
