"""Signals, failed engines and kill -9: exit codes of the server's process, and the ledger's rows afterwards."""

import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from server.metering.ledger.ledger import Ledger
from tests.support.chat_client import STREAM, get, received, send
from tests.support.harness import rows, until
from tests.support.server_process import process

pytestmark = pytest.mark.slow


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


def test_a_signal_right_after_the_announcement_is_an_orderly_end(tmp_path: Path) -> None:
    for _ in range(3):
        with process(tmp_path) as server:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(120) == 0


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
