"""`secateur serve MODEL`: settings made once, for an artifact and for a model that is imported first."""

import re
from pathlib import Path

import pytest

from server.artifact.checkpoint.lineage import FILE
from server.commands.__main__ import main
from server.commands.start.quick import is_model, settings_of, state_folder
from server.config import load
from server.errors import ConfigError
from tests.support.tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("quick") / "tiny")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_the_settings_and_the_key_are_made_once(model: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = settings_of(model)
    first = capsys.readouterr().out
    assert path.is_relative_to(state)
    assert re.search(r"key +sk-[\w-]{43}", first)
    assert load(path).model == str(model.resolve())
    assert settings_of(model) == path
    again = capsys.readouterr().out
    assert "sk-" not in again
    assert f"secateur keys create --file {path.parent / 'keys.json'} --skill help" in again
    assert str(path) in again


def test_the_folder_of_settings_is_no_model_and_names_its_file(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "first"
    assert (
        main(["init", str(folder), "--model", str(model), "--port", "0", "--admin-port", "0", "--page-port", "0"]) == 0
    )
    assert not is_model(folder)
    assert load(folder) == load(folder / "server.toml")
    assert main(["serve", str(folder), "--check"]) == 0
    (folder / "server.toml").unlink()
    with pytest.raises(ConfigError, match=r"first/server\.toml cannot be read"):
        load(folder)


def test_models_of_one_name_in_two_places_have_settings_of_their_own(tmp_path: Path) -> None:
    assert state_folder(tmp_path / "a" / "tiny") != state_folder(tmp_path / "b" / "tiny")


@pytest.mark.slow
def test_what_is_no_artifact_is_imported_first(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain"
    assert main(["export", str(model), "--to", "hf", "--output", str(plain)]) == 0
    (plain / FILE).unlink(missing_ok=True)
    config = load(settings_of(plain))
    assert (Path(config.model) / FILE).exists()
    assert Path(config.model).is_relative_to(state_folder(plain))
    assert main(["serve", str(tmp_path)]) == 2
    assert "was not imported, for the reason above" in capfd.readouterr().err
