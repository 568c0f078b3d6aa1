"""Conversations bounded in number and time, and refused after a reset; ratings bounded and counted."""

import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.chat.conversation.feedback import Feedback, FeedbackUnavailable, Opinion
from server.chat.conversation.store import GONE_SECONDS, Conversations, Turn, history


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def turn(question: str, *, answer: str = "yes", finish: str | None = "stop") -> Turn:
    recording: Any = SimpleNamespace(id=f"rep_{question}", text=answer, finish=finish)
    return Turn(question, None, recording, "r1")


def test_an_unused_conversation_is_forgotten() -> None:
    clock = Clock()
    kept = Conversations(seconds=10, most=9, clock=clock)
    kept.use("a", "help")
    clock.now = 6
    kept.use("b", "help")
    clock.now = 11
    assert kept.find("a") is None
    assert kept.find("b") is not None
    assert not kept.gone("a")


def test_a_conversation_with_a_running_reply_is_not_forgotten() -> None:
    clock = Clock()
    kept = Conversations(seconds=10, most=2, clock=clock)
    kept.use("a", "help").add(turn("q", finish=None), 5)
    clock.now = 99
    assert kept.find("a") is not None
    for name in "bcd":
        kept.use(name, "help")
    assert kept.find("a") is not None
    assert [name for name in "abcd" if kept.find(name)] == ["a", "d"]


def test_the_least_recently_used_goes_first() -> None:
    kept = Conversations(seconds=10, most=2, clock=Clock())
    for name in ("a", "b", "a", "c"):
        kept.use(name, "help")
    assert kept.find("b") is None
    assert kept.find("a") is not None


def test_a_reset_is_remembered_as_long_as_a_token_can_live() -> None:
    clock = Clock()
    kept = Conversations(seconds=10**6, most=9, clock=clock)
    kept.use("a", "help")
    kept.forget("a")
    assert kept.find("a") is None
    clock.now = GONE_SECONDS - 1
    assert kept.gone("a")
    clock.now = GONE_SECONDS + 1
    assert not kept.gone("a")


def test_history_is_the_latest_that_fits_in_order() -> None:
    kept = Conversations(seconds=10, most=2, clock=Clock()).use("a", "help")
    for question in ("1", "22", "333"):
        kept.add(turn(question, answer="x" * len(question)), 9)
    kept.add(turn("4", answer=" "), 9)  # one that was stopped before its first word
    assert [m["content"] for m in history(kept.turns, 9, 99, len)] == ["1", "x", "22", "xx", "333", "xxx"]
    assert [m["content"] for m in history(kept.turns, 9, 10, len)] == ["22", "xx", "333", "xxx"]
    assert [m["content"] for m in history(kept.turns, 1, 99, len)] == ["333", "xxx"]
    assert history(kept.turns, 0, 99, len) == []
    assert history(kept.turns, 9, -1, len) == []


def test_turns_beyond_the_bound_are_dropped() -> None:
    kept = Conversations(seconds=10, most=2, clock=Clock()).use("a", "help")
    for number in range(5):
        kept.add(turn(str(number)), 2)
    assert [t.question for t in kept.turns] == ["2", "3", "4"]
    kept.add(turn("5"), 0)
    assert [t.question for t in kept.turns] == ["5"]


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
    monkeypatch.setattr("server.chat.conversation.feedback.BUSY_SECONDS", 0.05)
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
