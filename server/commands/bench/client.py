"""Starts `secateur serve` in a process and measures it as an HTTP client.

Definitions of `vllm bench serve`, at the client: TTFT is from sending the request to the first token with text, and
tokens/s is (tokens - 1) / (last - first).
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
    """One round against one server; rates are in tokens a second."""

    resident_mb: float
    """Resident set of the server process after the round, in MB."""
    first_token_ms: float
    """TTFT of a single stream."""
    single: float
    """Rate of a single stream."""
    batched: float
    """Total rate of STREAMS streams, from the first request sent to the last token."""


class Stream(msgspec.Struct, frozen=True):
    """The timing of one streamed reply, in seconds of the monotonic clock."""

    sent: float
    first: float
    last: float
    tokens: int


class Server:
    """`secateur serve` of one model in a process, on free ports; entering waits until it is ready."""

    def __init__(self, model: Path, directory: Path) -> None:
        self.port, admin_port = free_port(), free_port()
        config = directory / "server.toml"
        settings = {
            "model": str(model.resolve()),
            "skills": str(directory / "skill.toml"),
            "ledger": str(directory / "usage.sqlite3"),
            "look_up": "off",  # speculation would make the rates depend on how repetitive the text is
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
                raise SecateurError(f"the measured server was not ready in {START_SECONDS} seconds; see above")
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)

    def resident_mb(self) -> float:
        """The process's resident set in MB."""
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
    """One round: a warm-up, a single stream, then STREAMS at once."""
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
    """Time one streamed reply of at most `tokens` tokens; raises SecateurError for any status but 200."""
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
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
