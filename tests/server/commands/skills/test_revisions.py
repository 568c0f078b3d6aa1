"""`secateur skills` with revisions: files in, files out, compared, published and rolled back, and in the audit log."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from server.commands.__main__ import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one action on a server in `tmp_path`; returns exit code, output and errors."""
    config = tmp_path / "server.toml"
    config.write_text(
        f'model = "m"\nskills = "{tmp_path}/skills"\nledger = "{tmp_path}/usage.sqlite3"\nskill_revisions = "read"\n'
    )

    def act(action: str, *words: str) -> tuple[int, str, str]:
        code = main(["skills", action, *words, "--server", str(config)])
        return code, *capsys.readouterr()

    return act


def test_files_become_revisions_and_files_again(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "skills"
    folder.mkdir()
    text = 'name = "help"  # the help desk\nsystem = "Be brief."\n'
    (folder / "a.toml").write_text(text)
    (folder / "b.toml").write_text('name = "other"\n')
    assert run("import", str(folder), "--publish", "--reason", "the first")[0] == 0
    _, printed, _ = run("list")
    assert [line.split()[0] for line in printed.splitlines()] == ["help@1", "other@1"]
    assert printed.count("published  the first") == 2
    rows = msgspec.json.decode(run("list", "--json")[1])
    assert [(row["skill"], row["number"], row["published"], row["reason"]) for row in rows] == [
        ("help", 1, True, "the first"),
        ("other", 1, True, "the first"),
    ]
    assert "text" not in rows[0]
    assert run("import", str(folder / "a.toml"))[1].startswith("help@1  ")  # unchanged
    assert run("export", str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out" / "help.toml").read_text() == text
    assert run("diff", "help@1", str(tmp_path / "out" / "help.toml")) == (0, "", "")


def test_a_revision_is_published_and_rolled_back_and_audited(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "help.toml"
    for prompt in ("one", "two"):
        file.write_text(f'name = "help"\nsystem = "{prompt}"\n')
        assert run("import", str(file))[0] == 0
        assert run("publish", "help@draft", "--reason", prompt)[0] == 0
    code, printed, _ = run("diff", "help@1", "help@published")
    assert code == 1
    assert '-system = "one"' in printed
    assert '+system = "two"' in printed
    assert "help@1 is published again" in run("rollback", "help", "--reason", "worse")[1]
    assert run("withdraw", "help")[0] == 0
    with sqlite3.connect(tmp_path / "usage.sqlite3") as ledger:
        rows = ledger.execute("SELECT action, object, result FROM audit ORDER BY number").fetchall()
    assert rows == [
        ("skill.publish", "help@1", "one"),
        ("skill.publish", "help@2", "two"),
        ("skill.rollback", "help@1", "worse"),
        ("skill.withdraw", "help@0", ""),
    ]


def test_what_cannot_be_done_is_one_sentence(run: Run, tmp_path: Path) -> None:
    for action, words, message in (
        ("publish", ["help"], "'help' is no revision: write NAME@3"),
        ("publish", ["help@1"], "There is no revision help@1."),
        ("rollback", ["help"], "Nothing else was published of 'help' before."),
        ("withdraw", ["help"], "There are no revisions of 'help'."),
        ("import", [str(tmp_path / "none.toml")], "cannot be read"),
        ("diff", ["help@1", "help@2"], "There is no revision help@1."),
    ):
        code, printed, error = run(action, *words)
        assert (code, printed) == (2, "")
        assert message in error
    (tmp_path / "server.toml").write_text('model = "m"\nskills = "s"\nledger = "l"\n')
    assert 'set skill_revisions = "read" or "edit"' in run("list")[2]
