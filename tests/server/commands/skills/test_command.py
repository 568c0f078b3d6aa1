"""`secateur skills check`: mistakes with their field, or each skill with its warnings."""

from pathlib import Path

import pytest

from server.commands.__main__ import main
from server.skills.catalogue import Skills
from tests.server.skills.test_skill_files import write


@pytest.mark.slow
def test_check_prints_mistakes_or_skills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "skills"
    write(folder, origins=["*"], tokens_per_day=5, tokens_per_month=3)
    assert main(["skills", "check", str(folder)]) == 0
    output = capsys.readouterr().out
    assert Skills.read(folder)[0].revision in output
    assert "every origin" in output
    assert "allows 5 tokens a day and only 3 a month" in output
    write(folder, greting="x")
    assert main(["skills", "check", str(folder)]) == 2
    assert "unknown field `greting`" in capsys.readouterr().err


def test_the_servers_settings_are_checked_too_if_they_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skill, server = tmp_path / "help.toml", tmp_path / "server.toml"
    skill.write_text('name = "help"\n')
    settings = f'model = "m"\nskills = "{skill}"\nledger = "l.sqlite3"\ntrusted_proxies = ["0.0.0.0/0"]\n'
    server.write_text(settings)
    assert main(["skills", "check", str(skill)]) == 0
    assert "trusted_proxies" not in capsys.readouterr().out
    assert main(["skills", "check", str(skill), "--server", str(server)]) == 0
    assert f"{server}\n  warning: `trusted_proxies` has 0.0.0.0/0: any client" in capsys.readouterr().out
    server.write_text(settings + "prot = 1\n")
    assert main(["skills", "check", str(skill), "--server", str(server)]) == 2
    assert "did you mean `port`?" in capsys.readouterr().err
