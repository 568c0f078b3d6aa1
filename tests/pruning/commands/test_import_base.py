"""`secateur import` beside `prune`: what its messages promise is what its next run does."""

from pathlib import Path

import pytest

from pruning.commands import import_base
from server.artifact.checkpoint.writer import CheckpointWriter
from tests.pruning import tiny


def test_an_interrupted_import_says_that_it_starts_anew_and_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, cache = tiny.save(tmp_path / "model"), tmp_path / "cache"
    original, added = CheckpointWriter.add, list[str]()

    def add(self: CheckpointWriter, name: str, *rest: object) -> None:
        added.append(name)
        if len(added) == 3:
            raise KeyboardInterrupt
        original(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointWriter, "add", add)
    command = [str(model), "--base-cache", str(cache)]
    assert import_base.main(command) == 130
    said = capsys.readouterr().err
    assert said.endswith("\nInterrupted: run the same command again, which starts anew.\n")
    assert [path.name for path in cache.iterdir()] == [".lock"]
    assert import_base.main(command) == 0
    assert added[:2] == added[3:5]
    assert Path(capsys.readouterr().out.strip()).is_dir()


def test_what_a_base_lacks_is_said_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tmp_path / "model")
    said: list[str] = []

    def read(*_: object, **__: object) -> None:
        said.append(capsys.readouterr().err)
        raise KeyboardInterrupt

    monkeypatch.setattr("pruning.model.base.import_base", read)
    command = [str(model), "--base-cache", str(tmp_path / "cache")]
    assert import_base.main(command) == 130
    assert "not serve a chat: it has no chat template\nThen give one, a Jinja file" in said.pop()
    assert import_base.main([*command, "--for-chat"]) == 2
    assert "model could not serve a chat: it has no chat template; give one" in capsys.readouterr().err
    (tmp_path / "chat.jinja").write_text("{{ nothing }")
    assert import_base.main([*command, "--chat-template", str(tmp_path / "chat.jinja")]) == 2
    assert "cannot be used as a chat template" in capsys.readouterr().err
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert import_base.main([*command, "--for-chat", "--chat-template", str(tmp_path / "chat.jinja")]) == 130
    assert "not serve a chat" not in said.pop()
