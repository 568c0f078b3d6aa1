"""Output directories are refused where something would be lost, and cleaned up after a kill."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from pruning.commands.__main__ import main
from pruning.run import output, pipeline
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact
from server.storage import files
from server.storage.files import move
from tests.pruning.conftest import RECIPE
from tests.pruning.run.conftest import Prune

Write = Callable[..., Path]
WANDA = '[[stages]]\nkind = "layerwise"\ntechnique = { name = "wanda", sparsity = "2:4" }\n'


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def finished(prune: Prune, tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Path:
    """The artifact of the recipe WANDA, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.toml").write_text(RECIPE.format(model=model, text=text, stages=WANDA))
    assert prune(folder / "recipe.toml", folder / "out") == 0
    return folder / "out"


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """An output directory that holds the artifact of the recipe WANDA."""
    return Path(copytree(finished, tmp_path / "out"))


def precious(folder: Path) -> Path:
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder


def test_directories_with_similar_names_are_left_alone(
    recipe: Write, prune: Prune, tmp_path: Path, place: Path
) -> None:
    others = [precious(tmp_path / name) for name in ("out.marked", "out.old", "out.partial")]
    assert prune(recipe(WANDA.replace("2:4", "1:4")), place) == 0
    assert [(other / "thesis.txt").read_text() for other in others] == ["years of work"] * 3
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "out",
        *(other.name for other in others),
        "recipe.toml",
    ]


def test_an_artifact_with_foreign_files_is_not_replaced(
    recipe: Write, prune: Prune, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "notes.txt").write_text("mine")
    assert prune(recipe(WANDA.replace("2:4", "1:4")), place) == 2
    assert "out/notes.txt does not belong to the artifact" in capsys.readouterr().err
    assert (place / "notes.txt").read_text() == "mine"


def test_a_base_is_never_replaced_by_what_is_made_from_it(
    recipe: Write, prune: Prune, model: Path, place: Path, base_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(WANDA.replace("2:4", "1:4"))
    path.write_text(path.read_text().replace(str(model), str(place)))
    imported = base_artifact(str(model), base_cache).path
    for target, sentence in {
        place: "is the base of this recipe",
        place / "second": f"lies in the artifact {place}",
        imported: "is an imported model",
        imported / "second": f"lies in the artifact {imported}",
    }.items():
        before = contents(place), contents(imported)
        assert prune(path, target) == 2
        assert sentence in capsys.readouterr().err
        assert (contents(place), contents(imported)) == before


def test_an_unreadable_record_is_not_replaced(
    recipe: Write, prune: Prune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious(tmp_path / "out")
    (tmp_path / "out" / "lineage.json").write_text('{"of": "another program"}')
    before = contents(tmp_path / "out")
    assert prune(recipe(WANDA), tmp_path / "out") == 2
    assert "is not a lineage record" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_the_root_is_refused(recipe: Write, prune: Prune, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(recipe(WANDA), Path("/")) == 2
    assert capsys.readouterr().err == "secateur: / cannot be replaced: name a directory in it\n"


def test_a_loop_of_links_is_one_sentence(
    recipe: Write, prune: Prune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "out")
    assert prune(recipe(WANDA), tmp_path / "out") == 2
    assert capsys.readouterr().err == f"secateur: {tmp_path / 'out'}: Too many levels of symbolic links\n"


def test_a_mount_point_is_refused_before_any_work(
    recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    if not mounted:
        monkeypatch.setattr(Path, "is_mount", lambda path: path == place)
    try:
        cache = ["--base-cache", str(tmp_path / "base")]
        assert main(["prune", str(recipe(WANDA)), "--output", str(place), *cache]) == 2
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
    assert "is a mount point, which cannot be replaced as a whole: name a directory in it" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("when", ["before the work is cleared", "while it is cleared", "before the old one goes"])
def test_after_a_kill_during_clean_up_the_next_run_leaves_nothing(
    recipe: Write, prune: Prune, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = recipe(WANDA)
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
        assert prune(path, place) == 130
    made = (place / "lineage.json").read_bytes()
    assert prune(path, place) == 0
    assert (place / "lineage.json").read_bytes() == made
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "recipe.toml"]


def test_the_work_of_another_recipe_stays(
    recipe: Write, prune: Prune, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(WANDA)
    text = path.read_text()
    path.write_text(text.replace("2:4", "1:4"))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prune(path, place) == 130
    begun = contents(tmp_path / "out.work")
    path.write_text(text)
    assert prune(path, place) == 0
    assert contents(tmp_path / "out.work") == begun


def test_killed_between_the_two_renames_the_old_artifact_is_put_back(
    recipe: Write, prune: Prune, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(WANDA)
    before = contents(place)

    def killed(source: Path, target: Path) -> None:
        if target == place:
            raise KeyboardInterrupt
        move(source, target)

    path.write_text(path.read_text().replace("2:4", "1:4"))
    with monkeypatch.context() as patch:
        patch.setattr(files, "move", killed)
        assert prune(path, place) == 130
    assert not place.exists()
    shutil.rmtree(tmp_path / "out.work")
    path.write_text(path.read_text().replace("1:4", "2:4"))
    monkeypatch.setattr(pipeline, "run", None)  # what was there fits, so nothing is made
    assert prune(path, place) == 0
    assert contents(place) == before
    Artifact.open(place)
