import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from server.chat.kept.questions import DAY, LONGEST, Questions, listed
from server.commands.__main__ import main
from server.skills.skill import Skill

KEEPING = Skill(name="desk", keep_questions=True, questions_days=2)


def test_questions_are_kept_only_for_skills_that_say_so(tmp_path: Path) -> None:
    questions = Questions(tmp_path / "f.sqlite3")
    questions.note(Skill(name="help"), "refused", "Who are you?")
    assert listed(tmp_path / "f.sqlite3") == []
    questions.note(KEEPING, "refused", "Who are you?")
    questions.note(KEEPING, "refused", "Who are you?")
    questions.note(replace(KEEPING, name="other"), "rated down", "Where?")
    assert [one[:4] for one in listed(tmp_path / "f.sqlite3")] == [
        ("desk", "refused", "Who are you?", 2),
        ("other", "rated down", "Where?", 1),
    ]
    assert [one.skill for one in listed(tmp_path / "f.sqlite3", "other")] == ["other"]
    questions.close()


def test_questions_expire_after_the_days_of_their_skill_and_are_cut(tmp_path: Path) -> None:
    now = [1e9]
    questions = Questions(tmp_path / "f.sqlite3", clock=lambda: now[0])
    questions.note(KEEPING, "refused", "old")
    questions.note(replace(KEEPING, name="slow", questions_days=30), "refused", "kept")
    now[0] += 3 * DAY
    questions.note(KEEPING, "refused", "x" * (LONGEST + 1))
    assert sorted(one.text for one in listed(tmp_path / "f.sqlite3")) == sorted(["kept", "x" * LONGEST])
    questions.close()


def test_a_full_disk_costs_a_log_line_without_the_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    questions = Questions(tmp_path / "f.sqlite3")
    with closing(sqlite3.connect(tmp_path / "f.sqlite3")) as other:
        other.execute("DROP TABLE questions")
        other.commit()
    questions.note(KEEPING, "refused", "a secret")
    assert "was not kept" in caplog.text
    assert "a secret" not in caplog.text
    questions.close()


def test_the_command_lists_questions_on_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = Questions(tmp_path / "f.sqlite3", clock=lambda: 1_764_500_000.0)
    questions.note(KEEPING, "refused", "Two\nlines?")
    questions.close()
    assert main(["knowledge", "questions", str(tmp_path / "f.sqlite3")]) == 0
    assert capsys.readouterr().out.split() == ["1", "2025-11-30", "desk", "refused", "Two", "lines?"]
    assert main(["knowledge", "questions", str(tmp_path / "f.sqlite3"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told == {"skill": "desk", "why": "refused", "text": "Two\nlines?", "times": 1, "last": 1_764_500_000.0}
    assert main(["knowledge", "questions", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_listing_writes_nothing_into_another_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as other:
        other.execute("CREATE TABLE requests (id)")
        other.commit()
    before = (tmp_path / "ledger.sqlite3").read_bytes()
    assert main(["knowledge", "questions", str(tmp_path / "ledger.sqlite3")]) == 2
    assert "has no questions to list" in capsys.readouterr().err
    assert (tmp_path / "ledger.sqlite3").read_bytes() == before
