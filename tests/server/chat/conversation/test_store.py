"""Conversations bounded in number and time, refused after a reset, encrypted; ratings bounded and counted."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from server.chat.conversation.store import GONE_SECONDS, SILENT_SECONDS, Conversations
from server.chat.conversation.transcript import INTERRUPTED, Transcript
from server.chat.conversation.turns import Asked, Conversation, Turn, history
from server.chat.kept.feedback import Feedback, FeedbackUnavailable, Opinion
from server.chat.kept.sealing import Seal
from server.chat.kept.texts import Texts
from server.errors import Conflict


class Clock:
    now = 1000.0

    def __call__(self, _: object) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("server.chat.conversation.store.now", made)
    return made


class Kept:
    """A store, called without a loop."""

    def __init__(self, texts: Texts | None = None, *, seconds: float = 10, most: int = 9, instance: str = "") -> None:
        self.texts = texts or Texts()
        self.store = Conversations(self.texts, seconds=seconds, most=most, instance=instance)
        self.number = 0

    def find(self, id: str) -> Conversation | None:
        return asyncio.run(self.store.find(id))

    def asked(self, id: str, question: str, *, message: str | None = None, replace: str | None = None) -> Asked:
        self.number += 1
        return Asked(Transcript(f"rep_{id}{self.number}", id, question), "help", "", message, replace, "r1")

    def begin(self, asked: Asked) -> Conversation:
        return asyncio.run(self.store.begin(asked))

    def run(self, id: str, question: str, *, most: int = 9, replace: str | None = None) -> Transcript:
        asked = self.asked(id, question, replace=replace)
        self.begin(asked)
        assert asyncio.run(self.store.run(asked, most))
        return asked.reply

    def ask(self, id: str, question: str, *, most: int = 9, replace: str | None = None) -> Transcript:
        reply = self.run(id, question, most=most, replace=replace)
        reply.add("yes")
        reply.end("stop", {})
        asyncio.run(self.store.write([reply]))
        return reply


def test_an_unused_conversation_is_forgotten(clock: Clock) -> None:
    kept = Kept()
    kept.ask("a", "1")
    clock.now += 6
    kept.ask("b", "2")
    clock.now += 5
    assert kept.find("a") is None
    assert kept.find("b") is not None
    asyncio.run(kept.store.tidy())
    assert kept.texts.transact(lambda database: database.execute("SELECT DISTINCT conversation FROM turns")) == [("b",)]
    kept.texts.close()


def test_a_forgotten_conversation_begins_anew(clock: Clock) -> None:
    kept = Kept()
    kept.ask("a", "1")
    clock.now += 11
    assert kept.begin(kept.asked("a", "2")).turns == ()
    kept.texts.close()


def test_a_conversation_with_a_running_reply_is_not_forgotten(clock: Clock) -> None:
    kept = Kept(most=2)
    reply = kept.run("a", "q")
    for _ in range(9):
        clock.now += SILENT_SECONDS - 1
        asyncio.run(kept.store.write([], [reply.id]))
    for name in "bcd":
        kept.ask(name, "q")
    asyncio.run(kept.store.tidy())
    assert [name for name in "abcd" if kept.find(name)] == ["a", "d"]
    kept.texts.close()


def test_the_least_recently_used_goes_first(clock: Clock) -> None:
    kept = Kept(most=2)
    for name in ("a", "b", "a", "c"):
        kept.ask(name, "q")
        clock.now += 1
    assert kept.find("b") is None
    assert kept.find("a") is not None
    kept.texts.close()


def test_a_reset_is_remembered_as_long_as_a_token_can_live(clock: Clock) -> None:
    kept = Kept(seconds=10**6)
    kept.ask("a", "q")
    asyncio.run(kept.store.forget("a"))
    clock.now += GONE_SECONDS - 1
    assert kept.find("a") == Conversation("a", gone=True)
    assert kept.begin(kept.asked("a", "q")).gone
    clock.now += GONE_SECONDS + 1
    assert kept.find("a") is None
    asyncio.run(kept.store.tidy())
    assert kept.texts.transact(lambda database: database.execute("SELECT * FROM conversations")) == []
    kept.texts.close()


def test_one_reply_at_a_time_and_a_repeated_message_begins_nothing(clock: Clock) -> None:
    kept = Kept()
    first = kept.asked("a", "q", message="m")
    kept.begin(first)
    with pytest.raises(Conflict) as refused:
        kept.begin(kept.asked("a", "q2", message="m2"))
    assert refused.value.param is None, "it has not begun"
    assert asyncio.run(kept.store.run(first, 9))
    with pytest.raises(Conflict) as refused:
        kept.begin(kept.asked("a", "q2", message="m2"))
    assert refused.value.param == first.reply.id
    assert [turn.reply.id for turn in kept.begin(kept.asked("a", "q", message="m")).turns] == [first.reply.id]
    kept.texts.close()


def test_a_question_whose_reply_did_not_begin_leaves_nothing(clock: Clock) -> None:
    kept = Kept()
    old = kept.ask("a", "q")
    asked = kept.asked("a", "q2", replace=old.id)
    kept.begin(asked)
    asyncio.run(kept.store.abandon(asked))
    assert [turn.reply.id for turn in found(kept, "a").turns] == [old.id]
    with pytest.raises(Conflict, match="Only the latest"):
        kept.begin(kept.asked("a", "q3", replace="rep_x"))
    kept.texts.close()


def test_the_reply_of_a_silent_replica_ends_as_interrupted(clock: Clock) -> None:
    kept = Kept(seconds=60)
    reply = kept.run("a", "q")
    reply.add("so ")
    reply.add("far")
    assert asyncio.run(kept.store.write([reply])) == set()
    clock.now += SILENT_SECONDS - 1
    assert found(kept, "a").running is not None
    clock.now += 2
    ended = found(kept, "a").turns[0].reply
    assert (ended.text, ended.finish) == ("so far", INTERRUPTED)
    assert [event.id for event in ended.events(0)] == [0, 1, 2, 3]
    assert list(ended.events(9)) == [(9, "end", {"finish": INTERRUPTED, "usage": None})], "its reader had seen more"
    assert asyncio.run(kept.store.write([reply])) == {reply.id}, "a replica that was only slow stops"
    kept.texts.close()


def test_a_start_ends_what_its_own_instance_left_open(clock: Clock) -> None:
    texts = Texts()
    dead, other = Kept(texts, instance="one"), Kept(texts, instance="two")
    dead.run("a", "q")
    dead.begin(dead.asked("b", "q"))
    other.run("c", "q")
    asyncio.run(Kept(texts, instance="one").store.recover())
    assert found(dead, "a").turns[0].reply.finish == INTERRUPTED
    assert found(dead, "b").turns == ()
    assert not found(dead, "b").beginning
    assert found(dead, "c").running is not None
    texts.close()


def test_a_reset_elsewhere_stops_the_reply(clock: Clock) -> None:
    kept = Kept()
    reply, asked = kept.run("a", "q"), kept.asked("b", "q")
    kept.begin(asked)
    for name in "ab":
        asyncio.run(kept.store.forget(name))
    assert asyncio.run(kept.store.write([], [reply.id])) == {reply.id}
    assert not asyncio.run(kept.store.run(asked, 9))
    kept.texts.close()


def test_another_replica_asks_the_owner_to_stop(clock: Clock) -> None:
    kept = Kept()
    reply = kept.run("a", "q")
    assert asyncio.run(kept.store.write([reply])) == set()
    asyncio.run(kept.store.stop(reply.id))
    assert asyncio.run(kept.store.write([reply])) == {reply.id}
    kept.texts.close()


def found(kept: Kept, id: str) -> Conversation:
    conversation = kept.find(id)
    assert conversation is not None
    return conversation


def test_no_text_lies_on_the_disk_in_plain_under_a_key(tmp_path: Path, clock: Clock) -> None:
    for seal, plain in ((Seal([b"k" * 32]), False), (Seal(), True)):
        folder = tmp_path / str(plain)
        kept = Kept(Texts(str(folder / "c.sqlite3"), seal))
        kept.ask("a", "what is my salary")
        written = b"".join(file.read_bytes() for file in folder.iterdir())
        assert (b"salary" in written) == plain
        kept.texts.close()


def turn(question: str, *, answer: str = "yes") -> Turn:
    reply = Transcript(f"rep_{question}", "cnv", question)
    reply.add(answer)
    return Turn(reply)


def test_history_is_the_latest_that_fits_in_order() -> None:
    turns = [turn(question, answer="x" * len(question)) for question in ("1", "22", "333")]
    turns.append(turn("4", answer=" "))  # one that was stopped before its first word
    assert [m["content"] for m in history(turns, 9, 99, len)] == ["1", "x", "22", "xx", "333", "xxx"]
    assert [m["content"] for m in history(turns, 9, 10, len)] == ["22", "xx", "333", "xxx"]
    assert [m["content"] for m in history(turns, 1, 99, len)] == ["333", "xxx"]
    assert history(turns, 0, 99, len) == []
    assert history(turns, 9, -1, len) == []


def test_turns_beyond_the_bound_are_dropped(clock: Clock) -> None:
    kept = Kept()
    for number in range(5):
        kept.ask("a", str(number), most=2)
    assert [one.reply.question for one in found(kept, "a").turns] == ["2", "3", "4"]
    kept.ask("a", "5", most=0)
    assert [one.reply.question for one in found(kept, "a").turns] == ["5"]
    kept.texts.close()


def test_ratings_are_bounded_and_their_totals_are_not(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "f.sqlite3", most=3)
    for number in range(10):
        feedback.give(Opinion(f"r{number}", "help", "rev", "up", str(number)))
    feedback.give(Opinion("other", "other", "rev", "down"))
    with closing(sqlite3.connect(tmp_path / "f.sqlite3")) as other:
        rows = other.execute("SELECT comment FROM feedback WHERE skill = 'help' ORDER BY given_at DESC").fetchall()
    assert rows == [("9",), ("8",), ("7",)]
    assert feedback.totals() == {("help", "up"): 10, ("other", "down"): 1}
    feedback.close()
    again = Feedback(tmp_path / "f.sqlite3")
    assert again.totals() == {("help", "up"): 10, ("other", "down"): 1}
    again.close()


def test_a_damaged_file_is_reported_as_unavailable(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "f.sqlite3")
    with closing(sqlite3.connect(tmp_path / "f.sqlite3")) as other:
        other.execute("DROP TABLE feedback_totals")
        other.execute("DROP TABLE feedback")
    with pytest.raises(FeedbackUnavailable, match="The ratings cannot be read: no such table"):
        feedback.totals()
    feedback.close()


def test_a_locked_file_is_unavailable_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.chat.kept.feedback.BUSY_SECONDS", 0.05)
    feedback = Feedback(tmp_path / "f.sqlite3")
    other = sqlite3.connect(tmp_path / "f.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(FeedbackUnavailable):
        feedback.give(Opinion("r", "help", "rev", "up"))
    other.execute("ROLLBACK")
    other.close()
    feedback.give(Opinion("r", "help", "rev", "up"))
    assert feedback.totals() == {("help", "up"): 1}
    feedback.close()
