"""The widget's protocol over real sockets: sessions, history, replies that outlive connections, feedback."""

import json
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import jwt
import msgspec
import pytest

from server.chat.conversation.recording import MOST_READERS
from server.commands.__main__ import main
from server.skills.handover import Handover
from server.skills.identity import Identity
from server.skills.skill import Source
from tests.support.harness import HELP, ORIGIN, Serve, Served, until
from tests.support.visitor import Visitor, events, text_of

SITE_KEY = "pk_site-key-1"


def ledger(served: Served) -> list[Any]:
    with closing(sqlite3.connect(served.parts.config.ledger)) as database:
        return database.execute("SELECT outcome, output_tokens FROM requests ORDER BY opened_at").fetchall()


def watch_prompts(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Records the messages of every prompt from now on."""
    seen: list[Any] = []
    chat = served.tokenizer.chat

    def watched(messages: Any, **options: Any) -> list[int]:
        seen.append([(message["role"], message["content"]) for message in messages])
        return chat(messages, **options)

    monkeypatch.setattr(served.tokenizer, "chat", watched)
    return seen


def test_a_session_returns_what_to_show_and_nothing_else(serve: Serve) -> None:
    person = Handover(webhook="https://desk.example/secret")
    added: dict[str, Any] = {
        "starters": ("How?",),
        "image_origins": ("https://i.example",),
        "follow_ups": ("And?",),
        "handover": person,
    }
    skill = msgspec.structs.replace(HELP, **added)
    assert skill.revision == msgspec.structs.replace(skill, follow_ups=(), handover=None).revision
    opened = Visitor(serve(skills=(skill,))).opened
    assert opened.status == 200
    assert opened.json["skill"] == {
        "name": "help",
        "title": "Help desk",
        "greeting": "Hello",
        "starters": ["How?"],
        "follow_ups": ["And?"],
        "image_origins": ["https://i.example"],
        "handover": {"kind": "webhook", "address": ""},
    }
    assert 0 < opened.json["expires_in"] <= 900
    assert not opened.json["resumed"]
    assert opened.headers["Cache-Control"] == "no-store"
    assert opened.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Retry-After" in opened.headers["Access-Control-Expose-Headers"]
    assert "Be brief" not in json.dumps(opened.json)


@pytest.mark.parametrize("origin", ["", "null", "https://evil.example", ORIGIN + ":1", ORIGIN.upper(), "*"])
def test_another_origin_or_none_opens_no_session(serve: Serve, origin: str) -> None:
    opened = Visitor(serve(), origin=origin).opened
    assert (opened.status, opened.json["error"]["code"]) == (403, "session_refused")
    assert "Access-Control-Allow-Origin" not in opened.headers


def test_all_refusals_of_a_session_look_alike(serve: Serve) -> None:
    served = serve(skills=(msgspec.structs.replace(HELP, site_keys=(SITE_KEY,)),))
    refusals = [
        Visitor(served).opened,
        Visitor(served, key="pk_another-key").opened,
        Visitor(served, key=SITE_KEY, origin="https://evil.example").opened,
        Visitor(served, key=SITE_KEY, skill="nobody").opened,
    ]
    assert {(refusal.status, json.dumps(refusal.json)) for refusal in refusals} == {(403, json.dumps(refusals[0].json))}
    assert Visitor(served, key=SITE_KEY).opened.status == 200


def test_a_star_admits_every_origin_but_not_a_missing_one(serve: Serve) -> None:
    served = serve(skills=(msgspec.structs.replace(HELP, origins=("*",)),))
    assert Visitor(served, origin="https://any.example").opened.status == 200
    for origin in ("", "null"):
        assert Visitor(served, origin=origin).opened.status == 403


def test_a_reply_is_numbered_events(serve: Serve) -> None:
    served = serve("Hi!")
    visitor = Visitor(served)
    received = visitor.ask("hello")
    assert [event.id for event in received] == list(range(len(received)))
    assert [event.name for event in received] == ["start", "text", "text", "text", "end"]
    assert received[0].data["conversation"] == visitor.opened.json["conversation"]
    usage = received[-1].data["usage"]
    assert received[-1].data["finish"] == "stop"
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4
    assert ledger(served) == [("stop", 4)]


def test_a_token_is_bound_to_its_origin_and_cannot_be_forged(serve: Serve) -> None:
    skill = msgspec.structs.replace(HELP, origins=(ORIGIN, "https://second.example"))
    visitor = Visitor(serve(skills=(skill,)))
    good = visitor.token
    head, payload, signature = good.split(".")
    for token, origin in (
        (good, "https://second.example"),
        (good, ""),
        ("", ORIGIN),
        (f"{head}.{payload}.{signature[:-2]}AA", ORIGIN),
        ("eyJhbGciOiJub25lIn0." + payload + ".", ORIGIN),
        (visitor.opened.json["resume"], ORIGIN),
        ("x" * 100_00, ORIGIN),
    ):
        visitor.token, visitor.origin = token, origin
        answer = visitor.post("messages", {"text": "x"})
        assert (answer.status, answer.json["error"]["code"]) == (401, "session_expired")
    visitor.token, visitor.origin = good, ORIGIN
    assert visitor.post("conversation").status == 200


def test_a_token_ends_and_is_refreshed_for_the_same_conversation(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve("Hi")
    visitor = Visitor(served)
    visitor.ask("one")
    now = [0]
    real = __import__("time").time
    monkeypatch.setattr("server.chat.conversation.session.time.time", lambda: real() - 601 + now[0])
    old = Visitor(served).token
    monkeypatch.undo()
    expired = Visitor(served)
    expired.token = old
    assert expired.post("conversation").json["error"]["code"] == "session_expired"
    again = Visitor(served, resume=visitor.opened.json["resume"])
    assert again.opened.json["resumed"]
    assert again.opened.json["conversation"] == visitor.opened.json["conversation"]
    assert [turn["question"] for turn in again.get("conversation").json["turns"]] == ["one"]


def test_resuming_from_another_skill_or_origin_starts_a_new_conversation(serve: Serve) -> None:
    second = msgspec.structs.replace(HELP, name="second", origins=(ORIGIN, "https://second.example"))
    served = serve("Hi", skills=(HELP, second))
    visitor = Visitor(served)
    visitor.ask("one")
    resume = visitor.opened.json["resume"]
    for other in (
        Visitor(served, skill="second", resume=resume),
        Visitor(served, skill="second", origin="https://second.example", resume=resume),
        Visitor(served, resume=visitor.token),
        Visitor(served, resume="nonsense"),
    ):
        assert other.opened.json["resumed"] is False
        assert other.get("conversation").json == {
            "conversation": other.opened.json["conversation"],
            "running": None,
            "turns": [],
        }


@pytest.mark.parametrize(
    "field", ["role", "messages", "model", "temperature", "max_tokens", "tools", "system", "history"]
)
def test_a_widget_sends_text_and_nothing_else(serve: Serve, field: str) -> None:
    visitor = Visitor(serve())
    answer = visitor.post("messages", {"text": "x", field: "system"})
    assert (answer.status, answer.json["error"]["param"]) == (400, field)


def test_the_server_has_the_history_and_the_system_prompt(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve("Yes")
    visitor, other = Visitor(served), Visitor(served)
    visitor.ask("one")
    seen = watch_prompts(served, monkeypatch)
    visitor.ask("two", context="Page: <b>Prices</b>")
    other.ask("three")
    assert seen[0][:3] == [("system", "Be brief."), ("user", "one"), ("assistant", "Yes")]
    assert seen[0][3][0] == "user"
    assert "no instructions" in seen[0][3][1]
    assert seen[0][3][1].endswith("two")
    assert seen[1] == [("system", "Be brief."), ("user", "three")]
    kept = visitor.get("conversation").json["turns"]
    assert [turn["question"] for turn in kept] == ["one", "two"]


def test_history_is_bounded_in_turns_and_tokens(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    few = msgspec.structs.replace(HELP, name="few", history_turns=2)
    short = msgspec.structs.replace(HELP, name="short", history_tokens=60)
    served = serve("ok", skills=(few, short), context=4096)
    for name, turns in (("few", 2), ("short", 1)):
        visitor = Visitor(served, skill=name)
        for word in ("aaaa", "bbbb", "cccc"):
            visitor.ask(word)
        seen = watch_prompts(served, monkeypatch)
        visitor.ask("dddd")
        assert len(seen[0]) == 1 + 2 * turns + 1
        assert seen[0][-3] == ("user", "cccc")
    kept = Visitor(served, skill="few", resume="x").get("conversation").json
    assert kept["turns"] == []


def test_history_leaves_room_for_the_reply(serve: Serve) -> None:
    served = serve("x" * 60, context=400)
    visitor = Visitor(served)
    for _ in range(6):
        received = visitor.ask("y" * 50)
        assert len(text_of(received)) == 60
        assert received[-1].data["finish"] == "stop"


def test_a_reply_continues_without_its_reader_and_resumes_exactly(serve: Serve) -> None:
    served = serve("0123456789" * 3, passes=8)
    visitor = Visitor(served)
    response = visitor.stream("hello")
    stream = events(response)
    before = [next(stream) for _ in range(5)]
    response.close()
    state = visitor.get("conversation").json
    assert state["running"] == before[0].data["reply"]
    assert served.engine.running == 1
    served.runner.release()
    id = state["running"]
    after = visitor.follow(id, "?from=5")
    assert after[0].id == 5
    assert text_of(before) + text_of(after) == "0123456789" * 3
    assert after[-1].name == "end"
    whole = visitor.follow(id)
    assert whole == before + after
    assert visitor.follow(id, Last_Event_ID="4") == after
    assert visitor.follow(id, f"?from={len(whole)}") == []
    for query in ("?from=-1", "?from=x", f"?from={len(whole) + 1}", "?from=" + "9" * 30):
        assert visitor.get(f"replies/{id}{query}").json["error"]["param"] == "from"
    assert ledger(served) == [("stop", 31)]


def test_after_a_reload_the_conversation_and_the_running_reply_are_there(serve: Serve) -> None:
    served = serve("0123456789" * 3, passes=8)
    visitor = Visitor(served)
    with closing(visitor.stream("hello")) as response:
        stream = events(response)
        for _ in range(4):
            next(stream)
        reloaded = Visitor(served, resume=visitor.opened.json["resume"])
        reply = reloaded.get("conversation").json["turns"][0]["reply"]
        assert reply["finish"] is None
        served.runner.release()
        rest = reloaded.follow(reply["id"], f"?from={reply['next']}")
        assert reply["text"] + text_of(rest) == "0123456789" * 3
        assert text_of(list(stream)).endswith("789")


def test_only_stop_ends_a_reply_and_frees_its_slot(serve: Serve) -> None:
    served = serve("x" * 60, passes=4)
    visitor, stranger = Visitor(served), Visitor(served)
    with closing(visitor.stream("go")) as response:
        stream = events(response)
        first = next(stream)
        next(stream)
        assert stranger.post(f"replies/{first.data['reply']}/stop").status == 404
        answer = visitor.post(f"replies/{first.data['reply']}/stop")
        assert answer.json == {"reply": first.data["reply"], "finish": "stopped"}
        served.runner.release()
        until(lambda: served.engine.running == 0)
        assert [event.data for event in stream][-1]["finish"] == "stopped"
    assert visitor.post(f"replies/{first.data['reply']}/stop").json["finish"] == "stopped"
    assert ledger(served)[0][0] == "client_gone"
    turn = visitor.get("conversation").json["turns"][0]
    assert turn["reply"]["finish"] == "stopped"
    assert 0 < len(turn["reply"]["text"]) < 60


def test_a_reply_that_takes_too_long_ends(serve: Serve) -> None:
    served = serve("x" * 60, passes=3, reply_seconds=0.3)
    received = Visitor(served).ask("go")
    assert received[-1].data["finish"] == "timeout"
    served.runner.release()
    until(lambda: served.engine.running == 0)


def test_one_reply_at_a_time_and_a_repeated_message_is_the_same_one(serve: Serve) -> None:
    served = serve("0123456789", passes=2)
    visitor = Visitor(served)
    with closing(visitor.stream("hello", message="m1")) as response:
        first = next(events(response))
        refused = visitor.post("messages", {"text": "again", "message": "m2"})
        assert (refused.status, refused.json["error"]["code"]) == (409, "reply_running")
        assert refused.json["error"]["param"] == first.data["reply"]
        served.runner.release()
        repeated = visitor.ask("hello", message="m1")
    assert repeated[0] == first
    assert text_of(repeated) == "0123456789"
    assert visitor.ask("hello", message="m1") == repeated
    assert len(ledger(served)) == 1


def test_retry_replaces_the_latest_turn(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve("ok")
    visitor = Visitor(served)
    visitor.ask("one")
    second = visitor.ask("two")[0].data["reply"]
    assert visitor.post("messages", {"text": "two", "replace": "rep_x"}).json["error"]["code"] == "reply_unknown"
    seen = watch_prompts(served, monkeypatch)
    visitor.ask("two", replace=second)
    assert [content for _, content in seen[0]] == ["Be brief.", "one", "ok", "two"]
    assert [turn["question"] for turn in visitor.get("conversation").json["turns"]] == ["one", "two"]
    assert visitor.get(f"replies/{second}").status == 404


def test_reset_forgets_and_stops(serve: Serve) -> None:
    served = serve("x" * 60, passes=4)
    visitor = Visitor(served)
    with closing(visitor.stream("go")):
        assert visitor.post("reset").status == 204
        served.runner.release()
        until(lambda: served.engine.running == 0)
    assert visitor.post("conversation").json["error"]["code"] == "session_expired"
    again = Visitor(served, resume=visitor.opened.json["resume"])
    assert not again.opened.json["resumed"]
    assert again.opened.json["conversation"] != visitor.opened.json["conversation"]


def test_after_a_reset_the_resume_token_still_identifies_the_visitor(serve: Serve) -> None:
    """The session token has expired by then."""
    key = "a secret of the page's own server"
    served = serve("ok", skills=(msgspec.structs.replace(HELP, identity=Identity("HS256", key, required=True)),))

    def token(seconds: int) -> str:
        return jwt.encode({"sub": "ada", "aud": "help", "exp": int(time.time()) + seconds}, key, "HS256")

    visitor = Visitor(served, identity=token(120))
    visitor.ask("one")
    assert visitor.post("reset").status == 204
    again = Visitor(served, resume=visitor.opened.json["resume"], identity=token(-600))
    assert (again.opened.status, again.opened.json["resumed"]) == (200, False)
    assert again.opened.json["conversation"] != visitor.opened.json["conversation"]
    assert Visitor(served, identity=token(-600)).opened.status == 401
    again.ask("two")
    kept = Visitor(served, resume=again.opened.json["resume"], identity=token(-600))
    assert kept.opened.json["resumed"], "the new conversation is the same person's"


def test_another_visitors_replies_are_not_found(serve: Serve) -> None:
    served = serve("secret")
    visitor, stranger = Visitor(served), Visitor(served)
    reply = visitor.ask("hello")[0].data["reply"]
    for answer in (
        stranger.get(f"replies/{reply}"),
        stranger.post(f"replies/{reply}/stop"),
        stranger.post("feedback", {"reply": reply, "rating": "up"}),
    ):
        assert (answer.status, answer.json["error"]["code"]) == (404, "reply_unknown")


def test_sources_are_cited_where_the_reply_has_their_words(serve: Serve) -> None:
    sources = (
        Source("Ledger", "https://docs.example/ledger", ("ledger",)),
        Source("Pruning", "https://docs.example/prune", ("prune",)),
    )
    served = serve("See the Ledger.", skills=(msgspec.structs.replace(HELP, sources=sources),))
    visitor = Visitor(served)
    received = visitor.ask("where?")
    expected = [{"title": "Ledger", "url": "https://docs.example/ledger"}]
    assert (received[-2].name, received[-2].data) == ("citations", {"citations": expected})
    assert received[-1].name == "end"
    assert visitor.get("conversation").json["turns"][0]["reply"]["citations"] == expected


def test_feedback_is_stored_counted_and_withdrawn(serve: Serve) -> None:
    served = serve("ok")
    visitor = Visitor(served)
    reply = visitor.ask("one")[0].data["reply"]
    for rating, comment in (("up", ""), ("up", "fine"), ("down", "wrong \u20ac")):
        assert visitor.post("feedback", {"reply": reply, "rating": rating, "comment": comment}).status == 204
    path = served.parts.config.feedback_file
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT reply, skill, revision, rating, comment FROM feedback").fetchall()
        assert rows == [(reply, "help", HELP.revision, "down", "wrong \u20ac")]
    assert visitor.get("conversation").json["turns"][0]["reply"]["rating"] == "down"
    metrics = _metrics(served)
    assert 'secateur_feedback_total{rating="up",skill="help"} 1.0' in metrics
    assert 'secateur_feedback_total{rating="down",skill="help"} 1.0' in metrics
    assert visitor.post("feedback", {"reply": reply, "rating": None}).status == 204
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM feedback").fetchone() == (0,)
    long = visitor.post("feedback", {"reply": reply, "rating": "up", "comment": "x" * 1001})
    assert (long.status, long.json["error"]["param"]) == (400, "comment")


def test_reasons_and_comments_are_listed_for_the_skills_owner(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    served = serve("ok")
    visitor = Visitor(served)
    replies = [visitor.ask(word)[0].data["reply"] for word in ("one", "two", "three")]
    said = [
        {"reply": replies[0], "rating": "down", "reasons": ["wrong", "other"], "comment": "<b>\x1b[2J\nno"},
        {"reply": replies[1], "rating": "up", "comment": "thanks"},
        {"reply": replies[2], "rating": "up"},
    ]
    for opinion in said:
        assert visitor.post("feedback", opinion).status == 204
    bad = visitor.post("feedback", {"reply": replies[0], "rating": "down", "reasons": ["rude"]})
    assert (bad.status, bad.json["error"]["param"]) == (400, "reasons[0]")

    def listed(query: str) -> list[list[Any]]:
        with urllib.request.urlopen(f"{served.admin}/admin/feedback{query}") as response:
            return [[one["reply"], one["reasons"], one["comment"]] for one in json.load(response)["ratings"]]

    second, first = [replies[1], [], "thanks"], [replies[0], ["wrong", "other"], "<b>\x1b[2J\nno"]
    assert listed("") == [second, first]
    assert listed("?rating=down") == [first]
    assert listed("?silent=true&limit=1") == [[replies[2], [], ""]]
    assert main(["feedback", str(served.parts.config.feedback_file), "--rating", "down"]) == 0
    assert capsys.readouterr().out.split("  ", 1)[1] == "help  down  wrong,other  <b> [2J no\n"
    assert main(["feedback", str(served.parts.config.ledger) + ".none"]) == 2
    assert visitor.post("feedback", {"reply": replies[0], "rating": None}).status == 204
    assert listed("") == [second]


def test_a_visitor_is_handed_over_with_the_transcript(serve: Serve) -> None:
    with receiver() as (url, received):
        served = serve("ok", skills=(msgspec.structs.replace(HELP, handover=Handover(webhook=url)),))
        visitor = Visitor(served)
        visitor.ask("Is it open?")
        assert visitor.post("handover", {"note": "Please call", "contact": "+49 1"}).status == 204
        [event] = json.loads(received[0])
        assert (event["type"], event["subject"]) == ("secateur.handover.requested.v1", "help")
        turns = [{"question": "Is it open?", "answer": "ok"}]
        assert {name: event["data"][name] for name in ("note", "contact", "turns")} == {
            "note": "Please call",
            "contact": "+49 1",
            "turns": turns,
        }
    failed = visitor.post("handover", {})
    assert (failed.status, failed.json["error"]["code"]) == (503, "overloaded")
    served.parts.skills.replace([HELP])
    assert visitor.post("handover", {}).status == 404


@contextmanager
def receiver() -> Iterator[tuple[str, list[bytes]]]:
    """A webhook's receiver: its URL, and the bodies that it got."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", received
        server.shutdown()
        thread.join()


def test_a_rating_names_the_skill_as_it_was_when_it_replied(serve: Serve) -> None:
    served = serve("ok")
    visitor = Visitor(served)
    reply = visitor.ask("one")[0].data["reply"]
    later = msgspec.structs.replace(HELP, system="Be long.")
    assert later.revision != HELP.revision
    served.parts.skills.replace([later])
    assert visitor.post("feedback", {"reply": reply, "rating": "down"}).status == 204
    new = visitor.ask("two")[0].data["reply"]
    assert visitor.post("feedback", {"reply": new, "rating": "up"}).status == 204
    with closing(sqlite3.connect(served.parts.config.feedback_file)) as database:
        rows = database.execute("SELECT reply, revision FROM feedback").fetchall()
    assert dict(rows) == {reply: HELP.revision, new: later.revision}


def _metrics(served: Served) -> str:
    import http.client
    from urllib.parse import urlsplit

    with closing(http.client.HTTPConnection(urlsplit(served.admin).netloc, timeout=120)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def test_draining_ends_replies_with_their_reason_and_opens_no_session(serve: Serve) -> None:
    served = serve("x" * 60, passes=2, drain_seconds=600)
    visitor = Visitor(served)
    with closing(visitor.stream("go")) as response:
        stream = events(response)
        next(stream)
        served.stop()
        until(lambda: served.apps.replies.draining)
        opened = Visitor(served).opened
        assert (opened.status, opened.headers["Retry-After"]) == (503, "5")
        served.stop()  # ends the drain
        last = list(stream)[-1]
    assert last.data["finish"] == "server_shutdown"
    assert last.data["usage"]["completion_tokens"] == ledger(served)[0][1]


def test_an_engine_that_fails_is_an_error_event(serve: Serve) -> None:
    served = serve("abcdef")
    visitor = Visitor(served)
    served.runner.fail_after = 3
    received = visitor.ask("go")
    assert received[-1].name == "error"
    assert received[-1].data["error"]["message"].startswith("The engine failed")
    assert visitor.get("conversation").json["turns"][0]["reply"]["finish"] == "error"


def test_a_reply_has_few_readers_at_once_and_room_for_another_when_one_leaves(serve: Serve) -> None:
    server = serve("Hello!", passes=3)
    visitor = Visitor(server)
    with ExitStack() as stack:
        reader = stack.enter_context(closing(visitor.stream("Hi", message="m1")))
        path = f"replies/{next(events(reader)).data['reply']}"
        readers = [stack.enter_context(closing(visitor.request("GET", path))) for _ in range(MOST_READERS - 1)]
        assert [next(events(one)).name for one in readers] == ["start"] * (MOST_READERS - 1)
        refused = visitor.get(path)
        assert (refused.status, refused.json["error"]["code"], refused.headers["Retry-After"]) == (
            429,
            "rate_limited",
            "5",
        )
        assert refused.json["error"]["message"] == f"This reply has {MOST_READERS} readers already; close one of them."
        assert visitor.post("messages", {"text": "Hi", "message": "m1"}).status == 429
        assert 'secateur_rejected_total{reason="concurrency",skill="help"} 2.0' in metrics(server)
        readers[0].close()
        until(lambda: follows(visitor, path))


def follows(visitor: Visitor, path: str) -> bool:
    """Whether a reader is admitted; it leaves at once."""
    with closing(visitor.request("GET", path)) as response:
        return response.status == 200


def metrics(served: Served) -> str:
    with urllib.request.urlopen(f"{served.admin}/metrics") as response:
        return str(response.read().decode())
