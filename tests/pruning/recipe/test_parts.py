"""A file in parts, joined from folders and installed packages."""

from pathlib import Path

import pytest

from pruning.errors import RecipeError, SourceMissing
from pruning.recipe import parts
from pruning.recipe.sources import locate


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A reference to a file in two installed packages."""
    for number, content in ((9, b"first "), (10, b"second")):
        package = tmp_path / f"half{number}"
        package.mkdir()
        (package / "__init__.py").write_text("raise AssertionError('imported')")
        (package / f"model.gguf.part0{number - 9}").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(parts, "JOINED", tmp_path / "joined")
    return "package:half{9..10}/model.gguf.part{00..01}"


def test_parts_are_joined_once_in_their_order(halves: str, tmp_path: Path) -> None:
    path = locate(halves)
    assert path.name == "model.gguf"
    assert path.read_bytes() == b"first second"
    before = path.stat().st_mtime_ns
    assert locate(halves) == path
    assert path.stat().st_mtime_ns == before
    (tmp_path / "half10" / "model.gguf.part01").write_bytes(b"another")
    assert locate(halves).read_bytes() == b"first another"


def test_ranges_count_together() -> None:
    assert parts.expanded("a{1..3}/b{08..10}") == ["a1/b08", "a2/b09", "a3/b10"]
    assert parts.expanded("a/b") == ["a/b"]


@pytest.mark.parametrize("reference", ["a{1..3}/b{1..2}", "a{3..1}"])
def test_ranges_of_unequal_length_are_refused(reference: str) -> None:
    with pytest.raises(RecipeError, match="must count upward over the same number of parts"):
        parts.expanded(reference)


def test_a_missing_part_is_named(halves: str) -> None:
    with pytest.raises(SourceMissing, match="the package half11 is not installed"):
        locate(halves.replace("..10}", "..11}").replace("..01}", "..02}"))
