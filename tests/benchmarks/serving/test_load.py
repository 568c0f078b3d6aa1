"""The client of `make bench-serving` against the real server with a fake model, and against broken streams."""

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from tests.benchmarks.serving.loads.load import LoadError, Target, Timing, crowd, reply, together
from tests.benchmarks.serving.loads.prompts import questions, system
from tests.support.harness import KEY, Serve, Served

EVENT = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def target(served: Served) -> Target:
    port = urlsplit(served.url).port
    assert port
    return Target(port, "help", KEY)


def answered(*pieces: bytes, tokens: int = 2) -> Timing:
    """The client's result from a server that sends these pieces one by one and closes."""

    def serve() -> None:
        connection = listener.accept()[0]
        with connection, suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.001)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return asyncio.run(reply(Target(listener.getsockname()[1]), "hi", tokens))
        finally:
            thread.join()


def test_a_reply_of_the_real_server_is_timed_event_by_event(serve: Serve) -> None:
    served = serve("0123456789", delay=0.02)
    timing = asyncio.run(reply(target(served), "hi", 10))
    assert (timing.tokens, len(timing.events), timing.cached) == (10, 10, 0)
    assert timing.prompt == len(served.tokenizer.chat([{"role": "system", "content": "Be brief."}, *asked("hi")]))
    assert timing.first_token >= 0.02
    assert len(list(timing.gaps)) == 9
    assert sum(timing.gaps) == pytest.approx(timing.events[-1] - timing.events[0])
    assert sorted(timing.events) == list(timing.events)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_all_questions_are_under_way_at_once(serve: Serve) -> None:
    timings = asyncio.run(together(target(serve("0123456789", delay=0.02)), ["a", "b"], 10))
    assert max(timing.sent for timing in timings) < min(timing.events[-1] for timing in timings)


def test_a_refusal_and_a_reply_of_another_length_are_errors(serve: Serve) -> None:
    served = serve("0123456789")
    with pytest.raises(LoadError, match=r"401.*API key is not known"):
        asyncio.run(reply(target(served)._replace(key="wrong"), "hi", 10))
    with pytest.raises(LoadError, match="has 11 tokens instead of 20"):
        asyncio.run(reply(target(served), "hi", 20))


def test_events_may_be_cut_anywhere() -> None:
    whole = HEAD + EVENT + EVENT + USAGE + b"data: [DONE]\n\n"
    cut = [whole[start : start + 7] for start in range(0, len(whole), 7)]
    assert answered(*cut)[2:] == answered(whole)[2:] == (7, 0, 2)
    assert len(answered(HEAD, EVENT, b'data: {"choices": [{"delta": {"role": "assistant", "content": null}}]}\n\n',
                        USAGE, b"data: [DONE]\n\n").events) == 1  # fmt: skip


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([HEAD, EVENT], "cut short"),
        ([HEAD, EVENT, b"data: [DONE]\n\n"], "no text or no usage"),
        ([HEAD, b"data: {nonsense\n\n"], "is no event"),
        ([b"HTTP/1.1 503 Busy\r\n\r\n", b'{"error": {"message": "later"}}\n'], "503 Busy.*later"),
        ([HEAD, b'data: {"error": {"message": "broken"}}\n\n'], "broken"),
    ],
)
def test_a_stream_that_goes_wrong_is_an_error(pieces: list[bytes], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        answered(*pieces)


def run_crowd(ask: Callable[[], Awaitable[Timing]], users: int, seconds: float) -> list[Timing]:
    return asyncio.run(crowd(ask, users, seconds))


def test_a_crowd_keeps_all_its_users_busy_until_the_last_reply_that_counts() -> None:
    live, asked = 0, 0

    async def ask() -> Timing:
        nonlocal live, asked
        live, asked = live + 1, asked + 1
        slow = asked % 7 == 0  # the others keep it company to the end
        sent = time.monotonic()
        await asyncio.sleep(0.4 if slow else 0.05)
        beside, live = live, live - 1
        return Timing(sent, (sent + 0.05,), beside, 0, 1)

    counted = run_crowd(ask, 4, 0.5)
    assert 4 <= len(counted) < asked
    assert {timing.prompt for timing in counted} == {4}


def test_a_crowd_ends_with_the_error_of_one_user() -> None:
    async def ask() -> Timing:
        raise LoadError("refused")

    with pytest.raises(LoadError, match="refused"):
        run_crowd(ask, 2, 0.1)


def test_prompts_are_as_long_as_asked_and_begin_apart() -> None:
    first, second = system(300, "one"), system(300, "two")
    assert 300 <= len(first.split()) < 330
    assert first[:40] != second[:40]
    some = list(itertools.islice(questions(1), 200))
    assert len(set(some)) == 200
    assert not set(some) & set(itertools.islice(questions(2), 200))
