"""Ratings beside the conversations: shared by replicas, sealed, moved from the file once, bounded, erasable."""

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.chat.conversation.erasure import Chosen as Conversations
from server.chat.conversation.erasure import erase, export
from server.chat.kept.feedback import Chosen, Feedback, FeedbackUnavailable, Opinion
from server.chat.kept.ratings import SharedFeedback
from server.chat.kept.sealing import Seal
from server.chat.kept.texts import Texts
from server.commands.__main__ import main
from server.commands.conversations import feedback_of, texts_of
from server.metering.ledger.connection import instance_of
from server.metering.ledger.ledger import Ledger
from server.web import app
from tests.server.chat.conversation.test_store import Kept
from tests.server.metering.conftest import postgres, where
from tests.support.harness import parts, says
from tests.support.postgres_server import new_database

__all__ = ["postgres", "where"]
KEY = Seal([b"k" * 32])
GIVEN = [("help", "rev", "up")] * 2 + [("help", "new", "down"), ("other", "rev", "up")]
UP = Opinion("rep_1", "help", "rev", "up", "ein Lob", ("kind",))


OPENED: list[SharedFeedback] = []


def shared(where: str, folder: Path, instance: str = "", seal: Seal = KEY, **more: int) -> SharedFeedback:
    texts = Texts(where, seal)
    try:
        OPENED.append(SharedFeedback(texts, folder / f"feedback{instance}.sqlite3", instance=instance, **more))
    except BaseException:
        texts.close()
        raise
    return OPENED[-1]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Closes all that `shared` opened."""
    yield
    for one in OPENED:
        one.close()
        one._texts.close()
    OPENED.clear()


def test_replicas_see_each_others_ratings_and_count_their_own(where: str, tmp_path: Path) -> None:
    one, two = shared(where, tmp_path, "1"), shared(where, tmp_path, "2")
    one.give(UP)
    two.give(Opinion("rep_1", "help", "rev", "down", "", ("wrong",)))  # the visitor's second thought, elsewhere
    two.give(Opinion("rep_2", "other", "rev", "up"))
    assert [(g.reply, g.rating, g.reasons, g.comment) for g in one.given(Chosen(skill="help"))] == [
        ("rep_1", "down", ("wrong",), "")
    ]
    assert (one.totals(), two.totals()) == ({("help", "up"): 1}, {("help", "down"): 1, ("other", "up"): 1})
    two.give(Opinion("rep_2", "other", "rev", None))
    assert not one.given(Chosen(skill="other", silent=True))


def test_totals_have_the_ledgers_instance_in_the_server_and_the_command(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_database(postgres)
    made = parts(tmp_path, says(tmp_path, "x"), ledger=place, conversation_storage="database")
    made.ledger.close()
    monkeypatch.setattr("socket.gethostname", lambda: "replica-7")
    with (
        closing(Ledger(place, instance=instance_of(place, made.config.instance))) as ledger,
        closing(texts_of(made.config)) as texts,
    ):
        of_server = app.feedback_of(msgspec.structs.replace(made, ledger=ledger), texts)
        with closing(of_server), closing(feedback_of(made.config, texts)) as of_command:
            of_server.give(UP)
            assert of_command.totals() == {("help", "up"): 1}
        assert texts.transact(lambda database: database.execute("SELECT instance FROM rating_totals")) == [
            ("replica-7",)
        ]


def test_comments_are_sealed_and_bound_to_their_reply(tmp_path: Path) -> None:
    where = str(tmp_path / "c.sqlite3")
    made = shared(where, tmp_path)
    made.give(UP)
    made.give(Opinion("rep_2", "help", "rev", "up", "anderes"))
    assert made.comments(["rep_1", "rep_0"]) == {"rep_1": "ein Lob"}
    made._texts.scrub()
    assert b"ein Lob" not in Path(where).read_bytes()
    with closing(sqlite3.connect(where)) as other:
        other.execute("UPDATE ratings SET content = (SELECT content FROM ratings WHERE reply = 'rep_2')")
        other.commit()
    with pytest.raises(FeedbackUnavailable, match="The comment on rep_1 cannot be read: it was changed"):
        made.comments(["rep_1"])


def test_ratings_are_counted_since_a_moment_without_reading_a_comment(where: str, tmp_path: Path) -> None:
    made = shared(where, tmp_path)
    made.give(UP)
    made.give(Opinion("rep_2", "help", "rev", "up"))
    made._texts.transact(lambda database: database.execute("UPDATE ratings SET given_at = given_at - 86400 * 9"))
    began = time.time() - 3600
    for number, (skill, revision, rating) in enumerate(GIVEN):
        made.give(Opinion(f"new_{number}", skill, revision, rating, "ein Wort"))
    made._texts.transact(lambda database: database.execute("UPDATE ratings SET content = ?", (b"spoilt",)))
    assert made.counts(began) == Counter(GIVEN)
    assert made.counts(0)["help", "rev", "up"] == 4


def test_ratings_in_a_file_are_counted_alike(tmp_path: Path) -> None:
    with closing(Feedback(tmp_path / "feedback.sqlite3")) as file:
        for number, (skill, revision, rating) in enumerate(GIVEN):
            file.give(Opinion(f"new_{number}", skill, revision, rating, "ein Wort"))
        assert file.counts(time.time() - 3600) == Counter(GIVEN)
        assert not file.counts(time.time() + 3600)


def test_ratings_are_bounded_in_number_and_days(where: str, tmp_path: Path) -> None:
    made = shared(where, tmp_path, most=3)
    for number in range(6):
        made.give(Opinion(f"rep_{number}", "help", "rev", "up"))
    assert [one.reply for one in made.given(Chosen(silent=True))] == ["rep_5", "rep_4", "rep_3"]
    made._texts.transact(lambda database: database.execute("UPDATE ratings SET given_at = given_at - 86400 * 9"))
    made.give(Opinion("new", "help", "rev", "down", days=7))
    assert [one.reply for one in made.given(Chosen(silent=True))] == ["new"]


def test_the_ratings_of_a_file_are_moved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, path = str(tmp_path / "c.sqlite3"), tmp_path / "feedback.sqlite3"
    old = Feedback(path)
    old.give(UP)
    old.give(Opinion("rep_2", "help", "rev", "down"))
    old.close()
    run = SharedFeedback._run

    def dies(self: SharedFeedback, work: Any) -> None:
        """Killed between the two databases' commits."""
        run(self, work)
        raise KeyboardInterrupt

    monkeypatch.setattr(SharedFeedback, "_run", dies)
    with pytest.raises(KeyboardInterrupt):
        shared(where, tmp_path)
    monkeypatch.undo()
    again = shared(where, tmp_path)
    assert again.totals() == {("help", "up"): 1, ("help", "down"): 1}
    assert {one.reply: one.comment for one in again.given(Chosen(silent=True))} == {"rep_1": "ein Lob", "rep_2": ""}
    again.close()
    emptied = Feedback(path)
    assert not emptied.given(Chosen(silent=True))
    emptied.give(Opinion("rep_3", "help", "rev", "up"))  # the operator went back to memory for a day
    emptied.close()
    assert shared(where, tmp_path).totals() == {("help", "up"): 2, ("help", "down"): 1}


def test_a_visitors_ratings_are_exported_and_erased_from_any_replica(where: str, tmp_path: Path) -> None:
    texts = Texts(where, KEY)
    kept = Kept(texts)
    reply = kept.ask("cnv_1", "why?")
    shared(where, tmp_path, "1").give(Opinion(reply.id, "help", "rev", "down", "zu lang"))
    other = shared(where, tmp_path, "2")
    chosen = Conversations(conversation="cnv_1")
    [turn] = export(texts, other, chosen)[0].turns
    assert turn.comment == "zu lang"
    assert erase(texts, other, chosen) == (1, 1)
    assert not other.given(Chosen(silent=True))
    texts.close()


def test_a_database_of_version_1_gets_the_tables(tmp_path: Path) -> None:
    where = str(tmp_path / "c.sqlite3")
    Texts(where).close()
    with closing(sqlite3.connect(where)) as old:
        for table in ("ratings", "rating_totals", "rating_moves"):
            old.execute(f"DROP TABLE {table}")
        old.execute("UPDATE kept_texts SET version = 1")
        old.commit()
    made = shared(where, tmp_path, seal=Seal())
    made.give(UP)
    assert made.totals() == {("help", "up"): 1}


def test_the_command_lists_what_the_servers_settings_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"model": "m", "skills": str(tmp_path), "ledger": str(tmp_path / "usage.sqlite3")}
    lines = [f'{name} = "{value}"' for name, value in (settings | {"conversation_storage": "database"}).items()]
    (tmp_path / "server.toml").write_text("\n".join(lines))
    shared(str(tmp_path / "conversations.sqlite3"), tmp_path, seal=Seal()).give(UP)
    assert main(["feedback", str(tmp_path / "server.toml")]) == 0
    assert "help  up    kind  ein Lob" in capsys.readouterr().out
