"""The completion script in a real bash: commands, actions, options."""

import subprocess

import pytest

from server.commands.__main__ import COMMANDS, main

pytestmark = pytest.mark.slow


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    typed = f"COMP_WORDS=(secateur {' '.join(words)}); COMP_CWORD={len(words)}"
    program = f"{script}\n{typed}; _shtab_secateur; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_actions_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert set(completed(script, "''")) >= set(COMMANDS)
    assert completed(script, "sk") == ["skills"]
    assert completed(script, "skills", "pub") == ["publish"]
    assert completed(script, "keys", "create", "--tokens-per-d") == ["--tokens-per-day"]
    assert completed(script, "serve", "--ch") == ["--check"]
