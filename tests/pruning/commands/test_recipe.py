"""`secateur recipe`: the recipes of examples/ from any folder, also out of the wheel."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pruning.recipe.recipe import read
from pruning.recipe.sources import locate
from pruning.stages.preflight import sources
from server.commands.__main__ import main
from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "examples/recipes").glob("*.toml"))


def test_all_recipes_are_listed_with_a_sentence_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert main(["recipe", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == NAMES
    for name, sentence in found.items():
        assert sentence.endswith("."), name
        assert sentence.split()[0] == (ROOT / f"examples/recipes/{name}.toml").read_text().split()[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_written_recipe_is_read_from_another_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", f"{name}.toml", "--output", "mine.toml"]) == 0
    capsys.readouterr()
    recipe = read(Path("mine.toml"))
    assert all(locate(source).exists() for source in sources(recipe))
    assert main(["recipe", name]) == 0
    assert capsys.readouterr().out == Path("mine.toml").read_text()
    assert recipe.stages == read(ROOT / f"examples/recipes/{name}.toml").stages


def test_a_misspelt_name_is_guessed_and_no_file_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "smolm2-vocabulary"]) == 2
    assert "did you mean `smollm2-vocabulary`?" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text("mine")
    assert main(["recipe", "width", "--output", str(tmp_path / "mine.toml")]) == 2
    assert "mine.toml exists already" in capsys.readouterr().err
    assert (tmp_path / "mine.toml").read_text() == "mine"
    assert main(["recipe", "width", "--output", str(tmp_path / "none/mine.toml")]) == 2
    assert "none/mine.toml cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_examples(tmp_path: Path) -> None:
    build = 'from scikit_build_core.build import build_wheel; build_wheel({!r}, {{"wheel.cmake": "false"}})'
    command = [sys.executable, "-c", build.format(str(tmp_path))]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        held = {
            name.removeprefix("pruning/"): packed.read(name)
            for name in packed.namelist()
            if name.startswith("pruning/examples/")
        }
    tracked = subprocess.run(["git", "ls-files", "examples"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert held == {name: (ROOT / name).read_bytes() for name in tracked.stdout.split()}
