"""Disconnecting clients and stopping servers, and the ledger's rows afterwards."""

import json
import socket
from typing import Any

import pytest

from server.web.listeners import bind
from tests.support.chat_client import ASK, STREAM, everything, get, received, send
from tests.support.harness import Serve, ledger_of, until


@pytest.mark.parametrize("body", [ASK, STREAM])
def test_a_client_that_disconnects_frees_its_slot_within_one_step(serve: Serve, body: dict[str, Any]) -> None:
    served = serve("x" * 60, passes=3)
    connection = send(served.url, body)
    raw = b""
    while body is STREAM and raw.count(b'"content":"x"') < 3:
        raw += connection.recv(4096)
    until(lambda: served.runner.steps == 4)  # the fourth pass is held
    connection.close()
    until(lambda: served.apps.replies.idle)
    served.runner.release()
    until(lambda: served.engine.running == 0)
    assert served.runner.steps == 4
    until(lambda: ledger_of(served)[0]["state"] == "final")
    (row,) = ledger_of(served)
    assert row["outcome"] == "client_gone"
    assert 3 <= row["output_tokens"] <= 4


@pytest.mark.parametrize("body", [ASK, STREAM])
def test_a_client_that_leaves_the_queue_is_counted_with_no_token(serve: Serve, body: dict[str, Any]) -> None:
    served = serve("x" * 60, passes=1, slots=1)
    with send(served.url, STREAM):
        until(lambda: served.runner.steps == 2)
        waiting = send(served.url, body)
        until(lambda: served.engine.waiting == 1)
        until(lambda: len(ledger_of(served)) == 2)
        waiting.close()
        until(lambda: served.engine.waiting == 0)
        assert served.engine.running == 1
    served.runner.release()
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
    served = serve("ab" + "x" * 60, passes=3)
    text, _ = received(send(served.url, {**STREAM, "stop": "b"}))
    assert text == "a"
    until(lambda: served.runner.steps == 4)
    served.runner.release()
    until(lambda: served.engine.running == 0)
    assert served.runner.steps == 4
    assert ledger_of(served)[0]["outcome"] == "stop"
    assert 2 <= ledger_of(served)[0]["output_tokens"] <= 4  # tokens sampled before the engine learnt of it, too


def test_draining_lets_replies_finish_and_refuses_new_ones(serve: Serve) -> None:
    served = serve("0123456789" * 3, passes=0)
    running = [send(served.url, STREAM), send(served.url, STREAM)]
    until(lambda: served.engine.running + served.engine.waiting == 2)
    served.runner.allow(2)
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
    served.runner.release()
    for connection in running:
        text, events = received(connection)
        assert text == "0123456789" * 3
        assert events[-1] == "[DONE]"
    assert [row["outcome"] for row in ledger_of(served)] == ["stop", "stop"]


@pytest.mark.parametrize("hurry", [False, True])
def test_replies_that_outlast_the_deadline_end_in_good_order(serve: Serve, hurry: bool) -> None:
    served = serve("x" * 60, passes=0, drain_seconds=60 if hurry else 0.3)
    streamed, whole = send(served.url, STREAM), send(served.url, ASK)
    until(lambda: served.engine.running + served.engine.waiting == 2)
    served.runner.allow(4)
    until(lambda: served.engine.running == 2 and served.runner.steps == 5)
    served.stop()
    if hurry:
        until(lambda: served.apps.replies.draining)
        served.stop()
    text, events = received(streamed)
    assert 0 < len(text) <= 4
    assert set(text) == {"x"}
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"]["completion_tokens"] == len(text)
    assert events[-3]["choices"][0]["finish_reason"] == "length"
    assert json.loads(everything(whole).split(b"\r\n\r\n")[1])["choices"][0]["finish_reason"] == "length"
    served.runner.release()
    assert [row["outcome"] for row in ledger_of(served)] == ["server_shutdown"] * 2
    assert ledger_of(served)[0]["output_tokens"] == len(text)


def test_small_packets_leave_at_once() -> None:
    """asyncio sets TCP_NODELAY only on a socket of this protocol; without it each event waits 40 ms for an ACK."""
    with bind("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
