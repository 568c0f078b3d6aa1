"""Clients that send slowly, too much, or do not read; `python -m tests.exams.public` does the same at full size."""

import http.client
import os
import shutil
import sqlite3
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from server.web.http.protocol import RESERVED, BoundedProtocol
from tests.exams.hostile import bodies, nginx, peers
from tests.exams.hostile.slow_bodies import SAID, SESSION, chat, counted, flood, probe
from tests.server.web.test_listeners import ASK, complete
from tests.support.chat_client import STREAM, everything, received, send
from tests.support.harness import KEY, Serve, Served, until
from tests.support.server_process import process
from tests.support.visitor import Visitor

pytestmark = pytest.mark.slow


def metrics(served: Served) -> str:
    with urllib.request.urlopen(f"{served.admin}/metrics", timeout=120) as answer:
        text: str = answer.read().decode()
        return text


def test_an_endless_head_is_cut_and_others_are_served(serve: Serve) -> None:
    served = serve("ok", head_seconds=0.5)
    with peers.slow_heads(served.url, 20) as connections:
        assert complete(served, ASK).status == 200
        assert peers.closed(connections) == 20


def test_a_second_head_on_a_kept_connection_has_the_same_deadline(serve: Serve) -> None:
    served = serve("ok", head_seconds=0.5)
    with peers.connect(served.url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert peers.closed([connection]) == 1


def test_a_body_that_trickles_after_its_answer_is_cut(serve: Serve) -> None:
    served = serve("ok", head_seconds=0.5)
    with peers.connect(served.url) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\na")
        assert connection.recv(4096).startswith(b"HTTP/1.1 404")
        connection.setblocking(False)
        until(lambda: peers.cut(connection))


def test_an_endless_body_is_refused_in_time_and_its_connection_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.web.http.requests.BODY_SECONDS", 0.3)
    served = serve("ok")
    visitor = Visitor(served)
    widget = f"POST /v1/widget/messages HTTP/1.1\r\nHost: x\r\nOrigin: {visitor.origin}\r\n"
    for head in (peers.HEAD, f"{widget}Authorization: Bearer {visitor.token}\r\n".encode()):
        with peers.connect(served.url) as connection:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
            answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"body_too_slow"' in answer


def test_a_reply_may_take_longer_than_a_heads_deadline(serve: Serve) -> None:
    served = serve("0123456789", delay=0.1, head_seconds=0.5)
    assert complete(served, ASK).json["choices"][0]["message"]["content"] == "0123456789"


def test_a_truncated_body_logs_no_error(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve("ok")
    with peers.connect(served.url) as connection:
        connection.sendall(peers.HEAD + b"Content-Length: 100\r\n\r\n{")
    assert complete(served, ASK).status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_connections_beyond_the_limit_replace_waiting_ones(serve: Serve) -> None:
    served = serve("ok", connections=5, head_seconds=600)
    with peers.slow_heads(served.url, 20) as connections:
        assert peers.closed(connections, enough=15) >= 15
    until(lambda: peers.answers(served.url))


def test_a_flood_of_slow_heads_does_not_keep_out_a_request(serve: Serve) -> None:
    served = serve("ok", connections=5, head_seconds=600)
    with peers.slow_heads(served.url, 20):
        assert complete(served, ASK).status == 200
        with closing(http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=120)) as kept:
            for _ in range(3):
                kept.request("GET", "/healthz")
                assert kept.getresponse().read()


def test_a_running_reply_is_never_evicted(serve: Serve) -> None:
    served = serve("0123456789" * 3, delay=0.03, connections=1, head_seconds=600)
    with send(served.url, STREAM) as running:
        until(lambda: served.engine.running == 1)
        with peers.slow_heads(served.url, 3 + RESERVED) as connections:
            assert peers.closed(connections, enough=3) >= 3
        assert received(running)[0] == "0123456789" * 3


def test_a_flood_of_slow_bodies_keeps_out_neither_probes_nor_chats(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve("ok", connections=64, head_seconds=600)
    with flood(served.url, 640):
        for path in ("/healthz", "/readyz"):
            assert all(probe(served.url, path) is not None for _ in range(5))
        assert all(chat(served.url) is not None for _ in range(5))
    assert counted(served.admin) >= 500
    assert [record for record in caplog.records if SAID in record.getMessage()]


def test_with_every_connection_in_a_reply_only_probes_are_answered(serve: Serve) -> None:
    served = serve("0123456789" * 4, delay=0.1, slots=3, connections=3, head_seconds=600)
    with ExitStack() as stack:
        running = [stack.enter_context(send(served.url, STREAM)) for _ in range(3)]
        until(lambda: served.engine.running == 3)
        with flood(served.url, 2 * RESERVED):
            assert probe(served.url, "/healthz") is not None
            assert probe(served.url, "/readyz") is not None
        answer = complete(served, ASK)
        assert (answer.status, answer.json["error"]["code"]) == (503, "overloaded")
        assert [received(connection)[0] for connection in running] == ["0123456789" * 4] * 3
    until(lambda: complete(served, ASK).status == 200)


def test_clients_that_do_not_read_make_room(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[BoundedProtocol] = []
    pause = BoundedProtocol.pause_writing

    def pausing(protocol: BoundedProtocol) -> None:
        paused.append(protocol)
        pause(protocol)

    monkeypatch.setattr(BoundedProtocol, "pause_writing", pausing)
    served = serve("ok", connections=3, send_seconds=600)
    with peers.never_read(served.url), peers.never_read(served.url), peers.connect(served.url) as kept:
        until(lambda: len(set(paused)) == 2)
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        assert complete(served, ASK).status == 200
        assert 'closed_total{cause="evicted",owed="read"} 1.0' in metrics(served)


def test_each_missed_deadline_is_counted(serve: Serve) -> None:
    served = serve("ok", head_seconds=0.3, send_seconds=0.3)
    with peers.slow_heads(served.url, 2) as connections, peers.never_read(served.url):
        assert peers.closed(connections) == 2
        until(lambda: 'closed_total{cause="deadline",owed="read"} 1.0' in metrics(served))
    assert 'closed_total{cause="deadline",owed="head"} 2.0' in metrics(served)


def test_a_session_is_refused_by_its_origin_before_its_body_arrives(serve: Serve) -> None:
    served = serve("ok")
    for origin in (b"", b"Origin: https://stranger.example\r\n"):
        with peers.connect(served.url) as connection:
            head = b"POST /v1/widget/session HTTP/1.1\r\nHost: x\r\n" + origin
            connection.sendall(head + b"Content-Length: 1000\r\n\r\n{")
            assert connection.recv(4096).startswith(b"HTTP/1.1 403 ")


def test_the_body_of_a_session_has_a_shorter_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.web.api.widget.SESSION_SECONDS", 0.3)
    served = serve("ok")
    with peers.connect(served.url) as connection:
        connection.sendall(SESSION)
        assert everything(connection).startswith(b"HTTP/1.1 408 ")
    assert 'closed_total{cause="deadline",owed="body"} 1.0' in metrics(served)


@pytest.mark.parametrize(("files", "room"), [("-Sn 200", "-Hn"), ("-n 200", "At most 100 connections instead of 300")])
def test_the_file_limit_is_raised_or_connections_are_capped(
    tmp_path: Path, files: str, room: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A shell and systemd allow 1,024 files, which slow connections could use up."""
    settings = ("connections=300", "head_seconds=600")
    with process(tmp_path, *settings, files=files) as server, peers.slow_heads(server.url, 400):
        assert peers.answers(server.url)
        assert peers.seconds_of(server.url, 3)
    assert (room in capfd.readouterr().err) == ("At most" in room)


def test_large_headers_and_bodies_cost_nothing(serve: Serve) -> None:
    served = serve("ok")
    before = peers.resident(os.getpid())
    assert peers.huge_header(served.url, 8 << 20)[:13] in (b"", b"HTTP/1.1 400 ")
    assert peers.huge_body(served.url, 1 << 30, 32 << 20)[:13] in (b"", b"HTTP/1.1 413 ")
    assert peers.resident(os.getpid()) - before < 20
    assert complete(served, ASK).status == 200


def test_two_lengths_are_refused_and_what_follows_is_not_parsed(serve: Serve) -> None:
    """A proxy that trusts Content-Length forwards two requests as one (request smuggling)."""
    served = serve("ok")
    hidden = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    for url in (served.url, served.admin, served.page):
        with peers.connect(url) as connection:
            both = f"Transfer-Encoding: chunked\r\nContent-Length: {len(hidden)}\r\n\r\n".encode()
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + both + hidden)
            answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1


def test_an_unauthorised_body_is_not_read(serve: Serve) -> None:
    served = serve("ok")
    with peers.connect(served.url) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")
    with peers.connect(served.url) as connection:
        connection.sendall(peers.HEAD + b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")


def test_more_turns_than_the_context_is_a_400(serve: Serve) -> None:
    served = serve("ok")
    roles = ["user" if index % 2 == 0 else "assistant" for index in range(20_001)]
    answer = complete(served, {"model": "help", "messages": [{"role": role, "content": ""} for role in roles]})
    assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")


def test_a_client_that_never_reads_is_cut(tmp_path: Path) -> None:
    with process(tmp_path, "send_seconds=1") as server:
        assert peers.answers(server.url)  # what the first request opens stays open
        before = peers.descriptors(server.process.pid)
        connection = peers.never_read(server.url)
        assert peers.settle(lambda: peers.descriptors(server.process.pid) <= before, 120) is not None
        connection.close()
        assert peers.answers(server.url)


@pytest.mark.parametrize("path", list(bodies.SEEDS))
def test_fuzzed_bodies_are_answered_and_a_refused_one_has_no_row(serve: Serve, path: str) -> None:
    served = serve("ok", max_waiting=64)
    visitor = Visitor(served)
    visit = {"Authorization": f"Bearer {visitor.token}", "Origin": visitor.origin}
    headers = {"Authorization": f"Bearer {KEY}"} if "chat" in path else visit
    counts = bodies.fuzz(served.url, path, lambda: headers, 80)
    assert sum(number for status, number in counts.items() if status >= 400) > 25
    assert served.engine.failure is None
    until(lambda: served.apps.replies.idle)
    with closing(sqlite3.connect(served.parts.config.ledger)) as database:
        assert database.execute("SELECT count(*) FROM requests").fetchone()[0] <= counts.get(200, 0)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed: tests/install")
def test_nginx_with_its_defaults_passes_events_as_they_come(serve: Serve) -> None:
    served = serve("0123456789" * 3, delay=0.05)
    with nginx.proxy(served.url) as proxied:
        times = nginx.arrivals(proxied)
        with closing(http.client.HTTPConnection(urlsplit(proxied).netloc, timeout=120)) as connection:
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
    assert len(times) > 10  # buffered, it would come in one or two pieces at the end
