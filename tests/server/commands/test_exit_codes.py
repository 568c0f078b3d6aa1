"""The exit codes that docs/operate/installed.md lists, each seen once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pruning.commands.failures import INTERRUPTED
from pruning.errors import GATE_FAILED
from server.commands import __main__ as console
from tests.conftest import ROOT


def code(*words: str) -> int:
    command = [sys.executable, "-m", "server.commands", *words]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_the_table_has_every_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/operate/installed.md").read_text().partition("## Exit codes")[2]
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    (tmp_path / "server.toml").write_text('model = "none"\nskills = "none"\nledger = "none/usage.sqlite3"\n')

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "import_module", interrupted)
    seen = {
        code("--version"),
        code("doctor", str(tmp_path / "server.toml")),
        code("prune", str(tmp_path / "none.toml"), "--check"),
        GATE_FAILED,
        console.main(["doctor"]),
    }
    assert seen == listed == {0, 1, 2, GATE_FAILED, INTERRUPTED}
