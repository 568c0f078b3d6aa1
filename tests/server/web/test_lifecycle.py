"""Disconnecting clients and stopping servers, and the ledger's rows afterwards."""

import http.client
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from server.metering.ledger.ledger import Ledger
from tests.support.harness import KEY, Serve, Served, until

ASK = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**ASK, "stream": True, "stream_options": {"include_usage": True}}


def send(url: str, body: dict[str, Any]) -> socket.socket:
    """Send a request; returns the socket, whose response the caller may read."""
    address = urlsplit(url)
    connection = socket.create_connection((str(address.hostname), address.port or 0), timeout=120)
    content = json.dumps(body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
    try:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
    except OSError:  # the server was killed in between
        connection.close()
        raise
    return connection


def get(url: str, path: str) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def rows(path: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM requests ORDER BY opened_at")]


def ledger_of(served: Served) -> list[dict[str, Any]]:
    return rows(Path(served.parts.config.ledger))


def everything(connection: socket.socket) -> bytes:
    """All bytes until the server closes."""
    raw = b""
    with connection:
        while chunk := connection.recv(65536):
            raw += chunk
    return raw


def received(connection: socket.socket) -> tuple[str, list[Any]]:
    """A whole stream: its text, and its decoded events."""
    raw = everything(connection)
    events = [line[6:].strip() for line in raw.decode().split("\n") if line.startswith("data: ")]
    decoded: list[Any] = [event if event == "[DONE]" else json.loads(event) for event in events]
    deltas = [event["choices"][0]["delta"] for event in decoded if event != "[DONE]" and event.get("choices")]
    return "".join(delta.get("content", "") for delta in deltas), decoded


def test_a_disconnected_stream_frees_its_slot_within_one_step(serve: Serve) -> None:
    served = serve("x" * 60, delay=0.05)
    connection = send(served.url, STREAM)
    raw = b""
    while raw.count(b'"content":"x"') < 3:
        raw += connection.recv(4096)
    steps = served.runner.steps
    connection.close()
    until(lambda: served.engine.running == 0)
    assert served.runner.steps <= steps + 2  # the step under way when it left, and the one under way when we noticed
    until(lambda: ledger_of(served)[0]["state"] == "final")
    (row,) = ledger_of(served)
    assert row["outcome"] == "client_gone"
    assert raw.count(b'"content":"x"') <= row["output_tokens"] <= served.runner.steps


def test_a_client_waiting_for_a_whole_reply_may_disconnect(serve: Serve) -> None:
    served = serve("x" * 60, delay=0.05)
    connection = send(served.url, ASK)
    until(lambda: served.runner.steps > 2)
    connection.close()
    until(lambda: served.engine.running == 0)
    assert served.runner.steps < 20
    until(lambda: ledger_of(served)[0]["state"] == "final")
    assert ledger_of(served)[0]["outcome"] == "client_gone"
    assert 0 < ledger_of(served)[0]["output_tokens"] < 20


@pytest.mark.parametrize("body", [ASK, STREAM])
def test_a_client_that_leaves_the_queue_is_counted_with_no_token(serve: Serve, body: dict[str, Any]) -> None:
    served = serve("x" * 60, delay=0.05, slots=1)
    with send(served.url, STREAM):
        until(lambda: served.engine.running == 1)
        waiting = send(served.url, body)
        until(lambda: served.engine.waiting == 1)
        until(lambda: len(ledger_of(served)) == 2)
        waiting.close()
        until(lambda: served.engine.waiting == 0)
        assert served.engine.running == 1
    until(lambda: [row["state"] for row in ledger_of(served)] == ["final", "final"])
    left = ledger_of(served)[1]
    assert (left["outcome"], left["prompt_tokens"], left["output_tokens"]) == ("client_gone", 0, 0)


def test_clients_that_disconnect_at_once_leave_nothing_behind(serve: Serve) -> None:
    served = serve("x" * 60, delay=0.01, max_waiting=64)
    for index in range(20):
        send(served.url, STREAM if index % 2 else ASK).close()
    until(lambda: served.engine.running == served.engine.waiting == 0)
    until(lambda: served.apps.replies.idle)
    until(lambda: all(row["state"] == "final" for row in ledger_of(served)))


def test_a_stop_string_frees_the_slot_before_the_engine_is_done(serve: Serve) -> None:
    served = serve("ab" + "x" * 60, delay=0.05)
    text, _ = received(send(served.url, {**STREAM, "stop": "b"}))
    assert text == "a"
    until(lambda: served.engine.running == 0)
    assert served.runner.steps <= 4
    assert ledger_of(served)[0]["outcome"] == "stop"
    assert 2 <= ledger_of(served)[0]["output_tokens"] <= served.runner.steps  # also what was sampled meanwhile


def test_draining_lets_replies_finish_and_refuses_new_ones(serve: Serve) -> None:
    served = serve("0123456789" * 3, delay=0.03)
    running = [send(served.url, STREAM), send(served.url, STREAM)]
    until(lambda: served.engine.running == 2)
    served.stop()
    until(lambda: served.apps.replies.draining)
    assert get(served.admin, "/readyz") == (503, {"status": "draining"})
    assert get(served.url, "/healthz") == (200, {"status": "ok"})
    with send(served.url, ASK) as refused:
        head = refused.recv(4096).decode()
    assert head.startswith("HTTP/1.1 503 ")
    assert "retry-after: 5" in head.lower()
    assert "x-should-retry: true" in head.lower()
    for connection in running:
        text, events = received(connection)
        assert text == "0123456789" * 3
        assert events[-1] == "[DONE]"
    assert [row["outcome"] for row in ledger_of(served)] == ["stop", "stop"]


@pytest.mark.parametrize("hurry", [False, True])
def test_replies_that_outlast_the_deadline_end_in_good_order(serve: Serve, hurry: bool) -> None:
    served = serve("x" * 60, delay=0.1, drain_seconds=60 if hurry else 0.3)
    streamed, whole = send(served.url, STREAM), send(served.url, ASK)
    until(lambda: served.engine.running == 2 and served.runner.steps > 2)
    served.stop()
    if hurry:
        until(lambda: served.apps.replies.draining)
        served.stop()
    text, events = received(streamed)
    assert 0 < len(text) < 60
    assert set(text) == {"x"}
    assert events[-1] == "[DONE]"
    sampled = events[-2]["usage"]["completion_tokens"]
    assert sampled - len(text) in (0, 1)  # one may have been sampled while the reply was being ended
    assert events[-3]["choices"][0]["finish_reason"] == "length"
    assert json.loads(everything(whole).split(b"\r\n\r\n")[1])["choices"][0]["finish_reason"] == "length"
    assert [row["outcome"] for row in ledger_of(served)] == ["server_shutdown"] * 2
    assert ledger_of(served)[0]["output_tokens"] == sampled


def test_small_packets_leave_at_once(serve: Serve) -> None:
    """A listening socket that asyncio does not know as TCP costs 40 ms on every event."""
    with closing(http.client.HTTPConnection(urlsplit(serve().url).netloc, timeout=120)) as connection:
        times = []
        for _ in range(10):
            started = time.monotonic()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            times.append(time.monotonic() - started)
    assert sorted(times)[3] < 0.03


class Process(NamedTuple):
    process: "subprocess.Popen[str]"
    url: str


@contextmanager
def process(folder: Path, *settings: str, delay: float = 0.005, files: str = "") -> Iterator[Process]:
    """The server in a process, which can be killed; `files` are arguments of `ulimit`."""
    limited = ["sh", "-c", f'ulimit {files} && exec "$@"', "-"] if files else []
    command = [*limited, sys.executable, "-m", "tests.support.fake_server", str(folder), str(delay), *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            urls = [
                line.split()[1]
                for line in takewhile(lambda line: "Ctrl-C" not in line, server.stdout)
                if line[:3] == "API"
            ]
            yield Process(server, urls[0].removesuffix("/v1"))
        finally:
            server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_exit_code_is_0(tmp_path: Path, number: signal.Signals) -> None:
    with process(tmp_path, delay=0.02) as server:
        connection = send(server.url, STREAM)
        assert connection.recv(10)
        server.process.send_signal(number)
        text, events = received(connection)
        assert text.endswith("0123456789")
        assert events[-1] == "[DONE]"
        assert server.process.wait(120) == 0
    assert [row["outcome"] for row in rows(tmp_path / "usage.sqlite3")] == ["stop"]


def test_a_server_whose_engine_failed_exits_with_1(tmp_path: Path) -> None:
    with process(tmp_path, "fail_after=3", delay=0.02) as server:
        text, events = received(send(server.url, STREAM))
        assert "DONE" not in text
        assert events[-1]["error"]["message"].startswith("The engine failed")
        assert server.process.wait(120) == 1
    assert [row["outcome"] for row in rows(tmp_path / "usage.sqlite3")] == ["error"]


def test_a_second_signal_kills_a_hanging_server(tmp_path: Path) -> None:
    with process(tmp_path, delay=300) as server:
        connection = send(server.url, STREAM)
        assert connection.recv(10)
        for _ in range(2):
            server.process.send_signal(signal.SIGTERM)
            until(lambda: get_or_none(server.url, "/readyz") != (200, {"status": "ready"}))
        assert server.process.wait(60) == 1
        connection.close()
    with process(tmp_path):
        assert [row["outcome"] for row in rows(tmp_path / "usage.sqlite3")] == ["server_shutdown"]


def get_or_none(url: str, path: str) -> tuple[int, Any] | None:
    try:
        return get(url, path)
    except OSError:
        return None


class Clients:
    """Twelve threads that stream until the server is gone; `told` has the usage that each reply reported."""

    def __init__(self, url: str) -> None:
        self.told: dict[str, Any] = {}
        self.read: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._run, args=(url,)) for _ in range(12)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(120)

    def _run(self, url: str) -> None:
        with suppress(OSError):
            while True:
                text, events = received(send(url, STREAM))
                if events:
                    self.read[events[0]["id"]] = len(text)
                if events and events[-1] == "[DONE]":
                    self.told[events[0]["id"]] = events[-2]["usage"]


def test_kill_9_leaves_an_exact_ledger(tmp_path: Path) -> None:
    """What a client was told is what the ledger has, and of a reply that the kill cut it has every token that left,
    and at most the one that was about to."""
    path = tmp_path / "usage.sqlite3"
    told: dict[str, Any] = {}
    read: dict[str, int] = {}
    for _ in range(2):
        with process(tmp_path, "slots=8") as server:
            clients = Clients(server.url)
            until(lambda clients=clients: len(clients.told) > 5)  # type: ignore[misc]
            until(lambda: sum(row["output_tokens"] for row in rows(path) if row["state"] == "open") > 10)
            server.process.kill()
            clients.join()
        told |= clients.told
        read |= clients.read
        assert any(row["state"] == "open" for row in rows(path))

    ledger = Ledger(path)
    totals = ledger.totals()
    ledger.close()
    recorded = {row["request_id"].replace("req_", "chatcmpl-"): row for row in rows(path)}
    assert read.keys() <= recorded.keys()
    for name, usage in told.items():
        row = recorded[name]
        assert row["state"] == "final"
        assert (row["prompt_tokens"], row["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert row["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    cut = {name: row for name, row in recorded.items() if row["state"] == "recovered"}
    assert sum(row["output_tokens"] for row in cut.values()) > 10
    for name, row in cut.items():
        assert 0 <= row["output_tokens"] - read.get(name, 0) <= 1
        assert (row["prompt_tokens"] > 0) == (row["output_tokens"] > 0)
    assert {row["state"] for row in recorded.values()} == {"final", "recovered"}
    for kind, column in (("input", "prompt_tokens"), ("cached", "cached_tokens"), ("output", "output_tokens")):
        assert totals.tokens["help", "tiny", kind] == sum(row[column] for row in recorded.values())
    assert sum(totals.requests.values()) == len(recorded)
