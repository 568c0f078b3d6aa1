"""Checks of a server's settings, each failing for its own reason."""

import json
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from server.commands.__main__ import main
from server.commands.start.settings import FirstServer
from tests.support.tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("doctor") / "tiny")


Examine = Callable[[], tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture
def first(model: Path, tmp_path: Path) -> FirstServer:
    made = FirstServer(folder=tmp_path / "server", model=model, port=0, admin_port=0, page_port=0)
    made.write()
    return made


@pytest.fixture
def examine(first: FirstServer, capsys: pytest.CaptureFixture[str]) -> Examine:
    """Run the command: its exit code, and the findings by their check, the last of each."""

    def run() -> tuple[int, dict[str, dict[str, str]]]:
        code = main(["doctor", str(first.config), "--json"])
        return code, {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}

    return run


def test_a_first_server_has_no_fault_and_nothing_is_changed(first: FirstServer, examine: Examine) -> None:
    before = sorted(path.name for path in first.folder.rglob("*"))
    code, found = examine()
    assert code == 0
    assert {found[name]["state"] for name in ("settings", "skills", "keys", "model", "ledger", "ports")} == {"ok"}
    assert "MB of cache" in found["model"]["found"]
    assert sorted(path.name for path in first.folder.rglob("*")) == before


def test_keys_that_others_may_read(first: FirstServer, examine: Examine) -> None:
    first.key_file.chmod(0o644)
    code, found = examine()
    assert (code, found["keys"]["state"]) == (0, "warning")
    assert f"chmod 600 {first.key_file}" in found["keys"]["remedy"]


def test_a_ledger_that_is_no_database(first: FirstServer, examine: Examine) -> None:
    (first.folder / "usage.sqlite3").write_text("no database, however long this text may be" * 40)
    code, found = examine()
    assert (code, found["ledger"]["state"]) == (1, "failed")
    (first.folder / "usage.sqlite3").unlink()
    sqlite3.connect(first.folder / "usage.sqlite3").close()
    assert examine()[1]["ledger"]["state"] == "ok"


def test_a_model_that_is_not_there_and_one_without_a_template(
    first: FirstServer, examine: Examine, tmp_path: Path
) -> None:
    first.config.write_text(first.config.read_text().replace(str(first.model.resolve()), str(tmp_path / "gone")))
    code, found = examine()
    assert (code, found["model"]["state"]) == (1, "failed")
    assert "gone does not exist" in found["model"]["found"]


def test_a_port_that_is_taken_and_a_typo(first: FirstServer, examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        first.config.write_text(first.config.read_text().replace("page_port = 0", f"page_port = {taken}"))
        code, found = examine()
    assert (code, found["ports"]["state"]) == (0, "warning")
    assert f"127.0.0.1:{taken}" in found["ports"]["found"]
    first.config.write_text(first.config.read_text().replace("page_port", "pge_port"))
    code, found = examine()
    assert (code, found["settings"]["state"]) == (1, "failed")
    assert "did you mean `page_port`?" in found["settings"]["found"]
