import json
from pathlib import Path

import pytest

from server.commands.__main__ import main


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "hours.md").write_text("# Hours\n\n## Sundays\n\nOn Sundays the shop is \x1b[31mclosed.\n")
    (tmp_path / "pages" / "bad.pdf").write_bytes(b"%PDF-1.4 rubbish")
    file = tmp_path / "knowledge.toml"
    file.write_text('name = "shop"\n[[sources]]\npath = "pages"\n')
    return file


def test_build_search_show_and_diff(tmp_path: Path, settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "one")
    assert main(["knowledge", "build", str(settings), "--output", output]) == 0
    said = capsys.readouterr().out
    assert "not read: pages/bad.pdf: it cannot be read as PDF" in said
    assert "2 documents read, 0 unchanged, 0 gone, 1 not read" in said
    assert main(["knowledge", "build", str(settings), "--output", output]) == 0
    assert "1 passages of 1 documents: the artifact is as it was" in capsys.readouterr().out
    assert main(["knowledge", "search", output, "open on sundays?"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1. Hours Sundays\n   pages/hours.md#sundays\n")
    assert "\x1b" not in said
    assert main(["knowledge", "search", output, "open on sundays?", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["passage"]["url"], found["passage"]["headings"]) == ("pages/hours.md#sundays", ["Sundays"])
    assert main(["knowledge", "show", output]) == 0
    said = capsys.readouterr().out
    assert "shop: 1 passages of 1 documents" in said
    assert "not read: pages/bad.pdf" in said
    (tmp_path / "pages" / "new.md").write_text("# New\n\nSomething.\n")
    assert main(["knowledge", "build", str(settings), "--output", str(tmp_path / "two")]) == 0
    capsys.readouterr()
    assert main(["knowledge", "diff", output, str(tmp_path / "two")]) == 0
    assert "+ pages/new.md" in capsys.readouterr().out.splitlines()


def test_what_is_no_knowledge_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in (["show", str(tmp_path)], ["search", str(tmp_path), "x"], ["diff", str(tmp_path), str(tmp_path)]):
        assert main(["knowledge", *action]) == 2
        assert "is not an artifact" in capsys.readouterr().err
    assert main(["knowledge", "build", str(tmp_path / "none.toml"), "--output", str(tmp_path / "o")]) == 2
    assert "none.toml cannot be read" in capsys.readouterr().err
