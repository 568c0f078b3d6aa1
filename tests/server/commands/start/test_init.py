"""`secateur init`: files that the server accepts, and a key that opens the skill."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.artifact.checkpoint.lineage import FILE
from server.commands.__main__ import main
from server.config import load
from server.skills.api_keys import Keys, digest
from server.skills.catalogue import Skills
from tests.support.tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("init") / "tiny")


def test_the_options_become_files_that_the_server_accepts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    words = ["--model", str(model), "--title", 'The "workshop"', "--origin", "https://a.example", "--skill", "bikes"]
    assert main(["init", str(folder), *words, "--port", "8123", "--system", "Be\nbrief."]) == 0
    printed = capsys.readouterr().out
    config = load(folder / "server.toml")
    assert (config.model, config.port) == (str(model.resolve()), 8123)
    (skill,) = Skills.read(config.skills)
    assert (skill.name, skill.title, skill.system) == ("bikes", 'The "workshop"', "Be\nbrief.")
    assert skill.origins == ("https://a.example", "http://127.0.0.1:8001", "http://localhost:8001")
    key = re.search(r"sk-[\w-]{43}", printed)
    assert key
    found = Keys(config.keys).find(digest(key[0]))
    assert found
    assert found.skills == ("bikes",)
    assert json.loads(re.findall(r"-d '(.*)'", printed)[0])["model"] == "bikes"
    assert 'src="http://127.0.0.1:8123/widget.js" data-skill="bikes"' in printed
    assert key[0] not in "".join(path.read_text() for path in folder.rglob("*.*") if path.is_file())
    assert main(["serve", str(folder / "server.toml"), "--check"]) == 0
    assert capsys.readouterr().out.startswith("ok: ")
    written = [path.read_text() for path in folder.rglob("*.toml")]
    assert len(written) == 2
    assert not [text for text in written if "docs/" in text]  # an installed package has no such folder
    capsys.readouterr()
    assert main(["init", str(tmp_path / "json"), "--model", str(model), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Keys(Path(told["keys"])).find(digest(told["key"]))
    assert told["key"] in told["ask"]
    assert (told["config"], told["start"]) == (str(tmp_path / "json/server.toml"), f"secateur serve {told['config']}")


def test_no_file_is_changed_and_a_mistake_leaves_none(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "server.toml").write_text("mine")
    assert main(["init", str(tmp_path), "--model", str(model)]) == 2
    assert "server.toml exists already" in capsys.readouterr().err
    assert (tmp_path / "server.toml").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for words, message in (
        (["--model", str(model), "--origin", "nowhere"], "'nowhere' at `$.origins[0]` is not an origin"),
        (["--model", str(tmp_path / "empty")], "was not imported, for the reason above"),
        (["--model", str(tmp_path)], " is no model: give the directory of an artifact"),
        ([], "name the model: --model MODEL"),
    ):
        assert main(["init", str(tmp_path / "other"), *words]) == 2
        assert message in capsys.readouterr().err
        assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]


def test_a_terminal_is_asked_for_what_no_option_says(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: Iterator[str] = iter([str(model), "", "https://a.example"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert main(["init", str(tmp_path / "mine")]) == 0
    (skill,) = Skills.read(tmp_path / "mine" / "skills")
    assert skill.title == "Chat"
    assert skill.origins[0] == "https://a.example"


@pytest.mark.slow
def test_a_model_is_imported_first_unless_it_cannot_chat(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, folder = tmp_path / "plain", tmp_path / "mine"
    assert main(["export", str(model), "--to", "hf", "--output", str(plain)]) == 0
    (plain / FILE).unlink(missing_ok=True)
    assert main(["init", str(folder), "--model", str(plain)]) == 0
    assert Path(load(folder / "server.toml").model).parent == folder / "base"
    for file in plain.glob("*.jinja"):
        file.unlink()
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    assert main(["init", str(tmp_path / "other"), "--model", str(plain)]) == 2
    assert "could not serve a chat: it has no chat template; give one, a Jinja file" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()


def test_an_answer_that_ends_the_input_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(question: str) -> str:
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ended)
    assert main(["init", str(tmp_path / "mine")]) == 2
    assert "a question was not answered" in capsys.readouterr().err
