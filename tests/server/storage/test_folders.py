"""New folders: whole or not at all, and nobody else's files are removed."""

from pathlib import Path

import pytest

from server.errors import ConfigError
from server.storage.folders import INSIDE, fresh


def test_a_folder_appears_with_all_that_was_written(tmp_path: Path) -> None:
    with fresh(tmp_path / "made", ConfigError) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("x")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "below" / "file").read_text() == "x"
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"file cannot be written: No such file"),
        fresh(tmp_path / "made", ConfigError) as folder,
    ):
        (folder / "none" / "file").write_text("x")
    assert not list(tmp_path.iterdir())


def test_only_the_remains_of_a_killed_command_are_removed(tmp_path: Path) -> None:
    beside = tmp_path / "made.partial"
    (beside / INSIDE).mkdir(parents=True)
    (beside / INSIDE / "half").touch()
    (beside / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"made\.partial is in the way"), fresh(tmp_path / "made", ConfigError):
        pass
    assert (beside / "thesis.txt").read_text() == "years of work"
    (beside / "thesis.txt").unlink()
    with fresh(tmp_path / "made", ConfigError):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]
