"""A server process of our own and a plain HTTP client that measures it; knows nothing of models.

TTFT and tokens/s follow the definitions of `vllm bench serve`: from the request sent to the first token with text,
and (tokens - 1) / (last - first), at the client.
"""

import http.client
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from server.errors import SecateurError

START_SECONDS = 180
STREAMS = 8
TOKENS = 128
PROMPT = "Write a long story about a gardener who prunes an old apple tree, with every detail of the garden."


class Measurement(msgspec.Struct, frozen=True):
    """One round against one server."""

    resident_mb: float
    """Resident set of the server process after all requests of the round, as the kernel reports it."""
    first_token_ms: float
    single: float
    """Tokens a second of one stream."""
    batched: float
    """Tokens a second of all streams together, from the first request sent to the last token."""


class Stream(msgspec.Struct, frozen=True):
    """One streamed answer: times are in seconds of the monotonic clock."""

    sent: float
    first: float
    last: float
    tokens: int


class Server:
    """`secateur serve` in a process of its own on free ports; a context manager that waits until it answers."""

    def __init__(self, model: Path, directory: Path) -> None:
        self.port, admin_port = free_port(), free_port()
        config = directory / "server.toml"
        settings = {
            "model": str(model.resolve()),
            "skills": str(directory / "skill.toml"),
            "ledger": str(directory / "usage.sqlite3"),
            "look_up": "off",  # what is measured is what a pass costs, not how often a text repeats itself
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        config.write_text("\n".join([*lines, f"port = {self.port}", f"admin_port = {admin_port}"]))
        self._command = [sys.executable, "-m", "server.commands", "serve", str(config)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise SecateurError("the server to be measured did not start; its messages stand above")
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)

    def resident_mb(self) -> float:
        """The process's resident set, in megabytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6

    def _answers(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False


def measure(server: Server, key: str) -> Measurement:
    """One round: a warm-up, one stream alone, then all streams together."""
    stream(server.port, key, "Hello.", 8)
    alone = stream(server.port, key, PROMPT, TOKENS)
    with ThreadPoolExecutor(STREAMS) as pool:
        prompts = [f"{PROMPT} The garden has the number {number}." for number in range(STREAMS)]
        together = list(pool.map(lambda prompt: stream(server.port, key, prompt, TOKENS), prompts))
    elapsed = max(one.last for one in together) - min(one.sent for one in together)
    return Measurement(
        resident_mb=server.resident_mb(),
        first_token_ms=(alone.first - alone.sent) * 1000,
        single=(alone.tokens - 1) / (alone.last - alone.first),
        batched=sum(one.tokens for one in together) / elapsed,
    )


def stream(port: int, key: str, prompt: str, tokens: int) -> Stream:
    """Ask for one streamed answer and time it."""
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    sent = time.monotonic()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise SecateurError(f"the measured server answered {response.status}: {response.read(500).decode()}")
    first, last, generated = 0.0, 0.0, 0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if any(choice["delta"].get("content") for choice in event["choices"]):
            last = time.monotonic()
            first = first or last
        if event.get("usage"):
            generated = event["usage"]["completion_tokens"]
    return Stream(sent, first, last, generated)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
