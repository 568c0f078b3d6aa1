"""What stands where an artifact is to be: kept, refused, or put right after a kill."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pruning.commands.__main__ import main
from pruning.run import output, pipeline
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact
from server.storage import files
from server.storage.files import move

Write = Callable[..., Path]
WANDA = '[[stages]]\nkind = "layerwise"\ntechnique = { name = "wanda", sparsity = "2:4" }\n'


def prune(path: Path, place: Path, cache: Path) -> int:
    return main(["prune", str(path), "--output", str(place), "--base-cache", str(cache)])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "base"


def precious(folder: Path) -> Path:
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder


@pytest.mark.parametrize("name", ["out.old", "out.marked", "out.partial"])
def test_what_is_called_nearly_the_same_is_left_alone(recipe: Write, tmp_path: Path, cache: Path, name: str) -> None:
    other = precious(tmp_path / name)
    for sparsity in ("2:4", "1:4"):  # the second replaces the first
        assert prune(recipe(WANDA.replace("2:4", sparsity)), tmp_path / "out", cache) == 0
        assert (other / "thesis.txt").read_text() == "years of work"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "out", name, "recipe.toml"]


def test_an_artifact_is_not_replaced_with_what_lies_beside_its_files(
    recipe: Write, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(recipe(WANDA), tmp_path / "out", cache) == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert prune(recipe(WANDA.replace("2:4", "1:4")), tmp_path / "out", cache) == 2
    assert "out/notes.txt does not belong to the artifact" in capsys.readouterr().err
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_base_is_never_replaced_by_what_is_made_from_it(
    recipe: Write, model: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(recipe(WANDA), tmp_path / "first", cache) == 0
    path = recipe(WANDA.replace("2:4", "1:4"))
    path.write_text(path.read_text().replace(str(model), str(tmp_path / "first")))
    imported = base_artifact(str(model), cache).path
    for place, sentence in {
        tmp_path / "first": "is the base of this recipe",
        tmp_path / "first" / "second": f"lies in the artifact {tmp_path / 'first'}",
        imported: "is an imported model",
        imported / "second": f"lies in the artifact {imported}",
    }.items():
        before = contents(tmp_path / "first"), contents(imported)
        assert prune(path, place, cache) == 2
        assert sentence in capsys.readouterr().err
        assert (contents(tmp_path / "first"), contents(imported)) == before


def test_a_record_that_cannot_be_read_is_not_replaced(
    recipe: Write, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious(tmp_path / "out")
    (tmp_path / "out" / "lineage.json").write_text('{"of": "another program"}')
    before = contents(tmp_path / "out")
    assert prune(recipe(WANDA), tmp_path / "out", cache) == 2
    assert "is not a lineage record" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_the_root_is_no_place_for_an_artifact(recipe: Write, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(recipe(WANDA), Path("/"), cache) == 2
    assert capsys.readouterr().err == "secateur: / cannot be replaced: name a directory in it\n"


def test_links_in_a_circle_are_one_sentence(
    recipe: Write, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "out")
    assert prune(recipe(WANDA), tmp_path / "out", cache) == 2
    assert capsys.readouterr().err == f"secateur: {tmp_path / 'out'}: Too many levels of symbolic links\n"


def test_a_mount_point_is_refused_before_any_work(
    recipe: Write, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    if not mounted:
        monkeypatch.setattr(Path, "is_mount", lambda path: path == place)
    try:
        assert prune(recipe(WANDA), place, cache) == 2
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
    assert "is a mount point, which cannot be replaced as a whole: name a directory in it" in capsys.readouterr().err
    assert not cache.exists()
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("when", ["before the work is cleared", "while it is cleared", "before the old one goes"])
def test_killed_once_it_stood_there_nothing_is_left_by_the_next_run(
    recipe: Write, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    place, path = tmp_path / "out", recipe(WANDA)
    assert prune(path, place, cache) == 0
    path.write_text(path.read_text().replace("2:4", "1:4"))

    def clear(work: Path) -> bool:
        if not place.exists() or (work / output.CANDIDATE).exists() or not (work / "stage-0").exists():
            return output.clear(work)  # at the beginning
        if when == "while it is cleared":
            (work / output.IDENTITY).unlink()
        raise KeyboardInterrupt

    def sync(folder: Path) -> None:
        if folder == tmp_path:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "before the old one goes":
            patch.setattr(files, "sync", sync)
        else:
            patch.setattr(pipeline, "clear", clear)
        assert prune(path, place, cache) == 130
    made = (place / "lineage.json").read_bytes()
    assert prune(path, place, cache) == 0
    assert (place / "lineage.json").read_bytes() == made
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "out", "recipe.toml"]


def test_the_work_of_another_recipe_stays(
    recipe: Write, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, path = tmp_path / "out", recipe(WANDA)
    assert prune(path, place, cache) == 0
    text = path.read_text()
    path.write_text(text.replace("2:4", "1:4"))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prune(path, place, cache) == 130
    begun = contents(tmp_path / "out.work")
    path.write_text(text)
    assert prune(path, place, cache) == 0
    assert contents(tmp_path / "out.work") == begun


def test_killed_between_the_two_renames_the_former_artifact_is_put_back(
    recipe: Write, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, path = tmp_path / "out", recipe(WANDA)
    assert prune(path, place, cache) == 0
    before = contents(place)

    def killed(source: Path, target: Path) -> None:
        if target == place:
            raise KeyboardInterrupt
        move(source, target)

    path.write_text(path.read_text().replace("2:4", "1:4"))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "move", killed)
        assert prune(path, place, cache) == 130
    assert not place.exists()
    shutil.rmtree(tmp_path / "out.work")
    path.write_text(path.read_text().replace("1:4", "2:4"))
    monkeypatch.setattr(pipeline, "run", None)  # what was there fits, so nothing is made
    assert prune(path, place, cache) == 0
    assert contents(place) == before
    Artifact.open(place)
