"""An HTTP load generator for chat: one event loop, plain sockets, a timestamp for each event.

Knows OpenAI's stream format and no particular server. TTFT is the time from the request to the first event with text,
ITL each gap between two events with text, both at the client, as `vllm bench serve` and guidellm define them.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

SPREAD_SECONDS = 1.0
ENDS = {"0": -100, "1": -100, "2": -100}
"""Biases that keep the model from ending early: the ids of SmolLM2's special tokens."""


class LoadError(Exception):
    """A reply was refused, cut short, or not of the requested length."""


class Timing(NamedTuple):
    """Timestamps of one reply, in seconds of the monotonic clock."""

    sent: float
    events: tuple[float, ...]
    """Arrival of each event with text."""
    prompt: int
    cached: int
    tokens: int

    @property
    def first_token(self) -> float:
        """TTFT in seconds."""
        return self.events[0] - self.sent

    @property
    def gaps(self) -> Iterator[float]:
        """ITL: seconds between consecutive events with text."""
        return (later - earlier for earlier, later in itertools.pairwise(self.events))


class Target(NamedTuple):
    """A server's address and the request around a question."""

    port: int
    model: str = "bench"
    key: str = ""
    system: str = ""
    """System prompt sent by the client; empty where the server adds its own."""
    session: str = ""
    """Sent as x-session-id, which routers hash; empty sends none."""

    def request(self, question: str, tokens: int) -> bytes:
        """The bytes of one HTTP request."""
        said = [{"role": "system", "content": self.system}] * bool(self.system)
        body = json.dumps(
            {
                "model": self.model,
                "messages": [*said, {"role": "user", "content": question}],
                "max_tokens": tokens,
                "temperature": 0,
                "logit_bias": ENDS,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = [
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            "Content-Type: application/json",
            f"Authorization: Bearer {self.key}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *[f"x-session-id: {self.session}"] * bool(self.session),
        ]
        return "\r\n".join([*head, "", ""]).encode() + body


class _Exchange(asyncio.Protocol):
    """A connection for one request; `done` resolves to its times, or raises LoadError."""

    def __init__(self, request: bytes) -> None:
        self.done: asyncio.Future[Timing] = asyncio.get_running_loop().create_future()
        self._request = request
        self._status = ""
        self._rest = b""
        self._sent = 0.0
        self._events: list[float] = []
        self._usage: dict[str, Any] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._sent = time.monotonic()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                self._line(line.rstrip(b"\r"), now)
            except (msgspec.DecodeError, KeyError) as error:
                self._fail(f"{line[:200]!r} is no event: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"{self._status}: the reply was cut short: {exc or self._rest[:300]!r}")

    def _line(self, line: bytes, now: float) -> None:
        """Read one line of the response; headers and chunk sizes are skipped."""
        if not self._status:
            self._status = line.decode()
        elif line == b"data: [DONE]":
            self._end()
        elif line.startswith(b"data: "):
            event = msgspec.json.decode(line[6:])
            if any(choice["delta"].get("content") for choice in event["choices"]):
                self._events.append(now)
            self._usage = event.get("usage") or self._usage
        elif line.startswith(b"{"):
            self._fail(f"{self._status}: {line[:300].decode()}")

    def _end(self) -> None:
        if not self._events or not self._usage:
            self._fail("the reply has no text or no usage")
        elif not self.done.done():
            usage = self._usage
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            timing = Timing(self._sent, tuple(self._events), usage["prompt_tokens"], cached, usage["completion_tokens"])
            self.done.set_result(timing)

    def _fail(self, message: str) -> None:
        if not self.done.done():
            self.done.set_exception(LoadError(message))


async def reply(target: Target, question: str, tokens: int) -> Timing:
    """Ask one question and read its stream; raises LoadError unless it has `tokens` tokens."""
    exchange = _Exchange(target.request(question, tokens))
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: exchange, "127.0.0.1", target.port)
    try:
        timing = await exchange.done
    finally:
        transport.abort()
    if timing.tokens != tokens:
        raise LoadError(f"the reply has {timing.tokens} tokens instead of {tokens}")
    return timing


async def together(target: Target, questions: list[str], tokens: int) -> list[Timing]:
    """Ask all questions at once; returns their times."""
    return list(await asyncio.gather(*(reply(target, question, tokens) for question in questions)))


async def crowd(ask: Callable[[], Any], users: int, seconds: float) -> list[Timing]:
    """`users` who each `ask` again once answered, for `seconds`; returns the replies that began in that time.

    They start spread over a second, which does not count, and go on until the last counted reply has ended.
    """
    begin = time.monotonic() + SPREAD_SECONDS
    counted: list[Timing] = []
    through: set[int] = set()

    async def user(number: int) -> None:
        await asyncio.sleep(SPREAD_SECONDS * number / users)
        while len(through) < users:
            timing: Timing = await ask()
            if begin <= timing.sent < begin + seconds:
                counted.append(timing)
            if time.monotonic() >= begin + seconds:
                through.add(number)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(users):
                group.create_task(user(number))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return counted
