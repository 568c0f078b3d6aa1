"""Conversations outlive their server and are answered by any replica; kept in SQLite, and in a real PostgreSQL."""

import json
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.harness import KEY, Serve, Served, parts, rows, says, served, until
from tests.support.postgres_server import new_database
from tests.support.postgres_server import postgres as postgres
from tests.support.server_process import process
from tests.support.visitor import Visitor, events, text_of

DATABASE: dict[str, Any] = {"conversation_storage": "database"}
Replica = Callable[..., Served]


@pytest.fixture
def replica(tmp_path: Path, postgres: str) -> Iterator[Replica]:
    """Starts replicas by name, which share a PostgreSQL."""
    url = new_database(postgres)
    with ExitStack() as stack:

        def start(name: str, text: str = "Hello!", *, passes: int | None = None) -> Served:
            folder = tmp_path / name
            runner = says(folder, text)
            if passes is not None:
                runner.hold(passes)
            made = parts(folder, runner, ledger=url, instance=name, **DATABASE)
            server = stack.enter_context(served(made, runner))
            stack.callback(runner.release)
            return server

        yield start


def moved(visitor: Visitor, server: Served | str) -> Visitor:
    """The same visitor, with the same token, at another server."""
    made = Visitor.__new__(Visitor)
    made.netloc = (server if isinstance(server, str) else server.url).removeprefix("http://")
    made.origin, made.token, made.opened = visitor.origin, visitor.token, visitor.opened
    return made


def ledger(server: Served) -> list[tuple[str, int]]:
    with psycopg.connect(server.parts.config.ledger) as database:
        return database.execute("SELECT outcome, output_tokens FROM requests ORDER BY opened_at").fetchall()


def test_a_conversation_goes_on_after_a_restart(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    first = serve("Yes", **DATABASE)
    visitor = Visitor(first)
    reply = visitor.ask("one")
    before = visitor.get("conversation").json
    first.stop()
    until(lambda: first.parts.ledger.closed)
    second = serve("No", **DATABASE)
    again = moved(visitor, second)
    assert again.get("conversation").json == before, "its session token is still valid"
    assert again.follow(reply[0].data["reply"]) == reply
    seen: list[Any] = []
    chat = second.tokenizer.chat

    def watched(messages: Any, **more: Any) -> list[int]:
        seen.append(messages)
        return chat(messages, **more)

    monkeypatch.setattr(second.tokenizer, "chat", watched)
    again.ask("two")
    assert [message["content"] for message in seen[0]] == ["Be brief.", "one", "Yes", "two"]
    resumed = Visitor(second, resume=visitor.opened.json["resume"])
    assert resumed.opened.json["resumed"]


def test_a_reply_that_a_stop_cuts_is_kept_with_its_end_though_nobody_reads_it(serve: Serve) -> None:
    first = serve("0123456789" * 3, passes=4, drain_seconds=0, **DATABASE)
    visitor = Visitor(first)
    with closing(visitor.stream("one")) as response:
        stream = events(response)
        assert [next(stream).name for _ in range(3)] == ["start", "text", "text"]
    first.stop()
    first.runner.release()
    until(lambda: first.parts.ledger.closed)
    [turn] = moved(visitor, serve("No", **DATABASE)).get("conversation").json["turns"]
    assert turn["reply"]["finish"] == "server_shutdown"
    assert turn["reply"]["text"].startswith("01")


def test_memory_keeps_no_text_on_the_disk_and_a_restart_forgets(tmp_path: Path, serve: Serve) -> None:
    first = serve("an answer")
    visitor = Visitor(first)
    visitor.ask("a question of mine")
    for file in tmp_path.glob("*.sqlite3*"):
        content = file.read_bytes()
        assert b"question of mine" not in content, file
        assert b"an answer" not in content, file
    first.stop()
    until(lambda: first.parts.ledger.closed)
    again = Visitor(serve("No"), resume=visitor.opened.json["resume"])
    assert not again.opened.json["resumed"]


def test_a_killed_server_ends_its_reply_as_interrupted_and_it_can_be_asked_again(tmp_path: Path) -> None:
    with process(tmp_path, "conversation_storage=database", delay=0.02) as server:
        visitor = Visitor.at(server.url)
        with closing(visitor.stream("hello", message="m1")) as response:
            stream = events(response)
            before = [next(stream) for _ in range(6)]
            server.process.kill()
            before += list(stream)
    [row] = rows(tmp_path / "usage.sqlite3")
    delivered = sum(event.name == "text" for event in before)
    assert row["state"] == "open"
    assert delivered <= row["output_tokens"] <= delivered + 1
    with process(tmp_path, "conversation_storage=database") as server:
        again = moved(visitor, server.url)
        [turn] = again.get("conversation").json["turns"]
        assert turn["reply"]["finish"] == "interrupted"
        assert "0123456789".startswith(turn["reply"]["text"][:10])
        rest = again.follow(turn["reply"]["id"], f"?from={before[-1].id + 1}")
        assert [event.name for event in rest if event.name != "text"] == ["end"]
        assert rest[-1].data == {"finish": "interrupted", "usage": None}
        assert [event.id for event in rest] == list(range(before[-1].id + 1, before[-1].id + 1 + len(rest)))
        repeated = again.ask("hello", replace=turn["reply"]["id"], message="m2")
        assert text_of(repeated) == "0123456789" * 3
        assert len(again.get("conversation").json["turns"]) == 1
    recovered, whole = rows(tmp_path / "usage.sqlite3")
    assert (recovered["outcome"], recovered["output_tokens"]) == ("recovered", row["output_tokens"])
    assert (whole["outcome"], whole["output_tokens"]) == ("stop", 31)


def test_a_repeated_request_is_answered_after_a_restart(tmp_path: Path, serve: Serve) -> None:
    def ask(server: Served) -> Any:
        body = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "k", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    first = serve("Yes", **DATABASE)
    answer = ask(first)
    first.stop()
    until(lambda: first.parts.ledger.closed)
    assert ask(serve("No", **DATABASE)) == answer
    assert len(rows(tmp_path / "usage.sqlite3")) == 1


def test_any_replica_follows_stops_and_continues_a_conversation(replica: Replica) -> None:
    one, two = replica("one", "0123456789" * 6, passes=8), replica("two", "ok")
    visitor = Visitor(one)
    elsewhere = moved(visitor, two)
    with closing(visitor.stream("hello", message="m1")) as response:
        stream = events(response)
        before = [next(stream) for _ in range(5)]
        until(lambda: elsewhere.get("conversation").json["running"])
        id = before[0].data["reply"]
        refused = elsewhere.post("messages", {"text": "more"})
        assert (refused.status, refused.json["error"]["param"]) == (409, id)
        with closing(elsewhere.request("GET", f"replies/{id}")) as followed:
            there = events(followed)
            assert [next(there) for _ in range(5)] == before
            one.runner.allow(8)
            later = [next(there) for _ in range(8)]
            assert later == [next(stream) for _ in range(8)]
            assert elsewhere.post(f"replies/{id}/stop").json == {"reply": id, "finish": "stopped"}
            assert next(reversed(list(there))).data["finish"] == "stopped"
    assert elsewhere.ask("more")[-1].data["finish"] == "stop"
    assert [turn["question"] for turn in visitor.get("conversation").json["turns"]] == ["hello", "more"]
    assert [outcome for outcome, _ in ledger(one)] == ["client_gone", "stop"]


def test_a_reset_at_one_replica_ends_the_reply_at_another(replica: Replica) -> None:
    one, two = replica("one", "0123456789" * 6, passes=4), replica("two")
    visitor = Visitor(one)
    with closing(visitor.stream("hello")) as response:
        next(events(response))
        assert moved(visitor, two).post("reset").status == 204
        one.runner.release()
        until(lambda: ledger(one)[0][0] is not None)
    for server in (one, two):
        assert moved(visitor, server).post("conversation").json["error"]["code"] == "session_expired"


def test_a_reply_of_a_killed_replica_is_ended_by_another(
    tmp_path: Path, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.chat.conversation.store.SILENT_SECONDS", 2.0)
    two = replica("two")
    settings = ("conversation_storage=database", f"ledger={two.parts.config.ledger}", "instance=one")
    with process(tmp_path / "one", *settings, delay=0.05) as server:
        visitor = Visitor.at(server.url)
        with closing(visitor.stream("hello")) as response:
            stream = events(response)
            before = [next(stream) for _ in range(6)]
            until(lambda: moved(visitor, two).get("conversation").json["running"])
            server.process.kill()
    rest = moved(visitor, two).follow(before[0].data["reply"], f"?from={before[-1].id + 1}")
    assert rest[-1].data["finish"] == "interrupted"
    assert moved(visitor, two).ask("hello", replace=before[0].data["reply"])[-1].data["finish"] == "stop"


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    from server.config import load
    from server.errors import ConfigError

    settings = tmp_path / "server.toml"
    settings.write_text('model = "m"\nskills = "s"\nledger = "l.sqlite3"\nconversation_key = "k"\n')
    with pytest.raises(ConfigError, match=r'conversation_storage = "database".*conversation_key'):
        load(settings)


def test_an_sqlite_file_of_conversations_is_its_owners_alone(tmp_path: Path, serve: Serve) -> None:
    Visitor(serve("Yes", **DATABASE)).ask("one")
    path = tmp_path / "conversations.sqlite3"
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM turns").fetchone() == (1,)
