"""Every example recipe, with its stages unchanged, on a tiny model, a short text and few tokens."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pruning.recipe.recipe import Recipe, read
from pruning.run.pipeline import run
from pruning.stages.inputs import prepare
from server.artifact.checkpoint.layouts import Quantised
from tests.conftest import ROOT
from tests.pruning.stages.vocabulary.test_vocabulary import save

pytestmark = pytest.mark.slow

RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.toml"))
SMALL = {"sequences": 12, "tokens": 32, "batch": 5}
SMALL_STAGES = {
    "distill": {"tokens": 64, "length": 16, "batch": 2, "held_out": 2},
    "depth": {"remove": 2, "sequences": 2},
    "vocabulary": {"keep": 320, "fit": {"tokens": 64, "length": 16, "batch": 2, "held_out": 2}},
}


def one_source(values: dict[str, Any], text: Path) -> dict[str, Any]:
    """`values` with `text` in place of one source or several."""
    return {key: value for key, value in values.items() if key not in ("sources", "texts")} | {"source": str(text)}


def small(path: Path, model: Path, text: Path) -> Recipe:
    """The recipe in `path` with a tiny base, a short text and few tokens."""
    values: dict[str, Any] = tomllib.loads(path.read_text())
    values["base"] = str(model)
    values["calibration"] = one_source(values["calibration"], text) | SMALL
    values["evaluation"] = one_source(values["evaluation"], text) | {"tokens": 64, "window": 32}
    values["stages"] = [stage | SMALL_STAGES.get(stage["kind"], {}) for stage in values["stages"]]
    return msgspec.convert(values, Recipe)


def test_there_are_few_recipes_and_each_states_its_purpose() -> None:
    assert 0 < len(RECIPES) <= 8
    for path in RECIPES:
        assert path.read_text().startswith("# "), path
        recipe = read(path)
        evaluated = recipe.evaluation.every
        assert not any(text.shares(other) for text in recipe.calibration.texts for other in evaluated), path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs(path: Path, model: Path, text: Path, tmp_path: Path) -> None:
    if "vocabulary" in path.stem:  # the others' tokenizer has byte tokens only
        model, text = save(tmp_path / "model"), tmp_path / "text.txt"
    recipe = small(path, model, text)
    artifact = run(prepare(recipe, tmp_path / "base"), tmp_path / "out", tmp_path / "base")
    lineage = artifact.lineage
    assert len(lineage.steps) == len(recipe.stages)
    assert lineage.evaluation is not None
    assert lineage.evaluation.bytes["pruned"] < lineage.evaluation.bytes["dense"]
    if path.stem == "32of64-int4":
        layout = artifact.layout("model.layers.1.mlp.down_proj.weight")
        assert isinstance(layout, Quantised)
        assert layout.keep == 32
        assert (artifact.tensor("model.layers.1.mlp.down_proj.weight") == 0).float().mean() >= 0.5
    if path.stem in ("width", "depth"):
        before, after = lineage.steps[0].parameters, artifact.config
        assert before < 515_776 / 2
        assert (after["num_hidden_layers"], after["intermediate_size"]) == ((4, 128), (6, 96))[path.stem == "width"]
