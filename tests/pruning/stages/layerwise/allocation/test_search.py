"""Allocation by search: blocks at all levels, their divergence against transformers, and a whole recipe."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from pruning.commands.__main__ import main
from pruning.errors import RecipeError
from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.model.weights import Shards
from pruning.passes.statistics import Gram, InputStatistics
from pruning.passes.sweep import Sweep
from pruning.stages.inputs import base_artifact
from pruning.stages.layerwise.allocation import search
from pruning.stages.layerwise.allocation.evolution import SearchState
from pruning.stages.layerwise.allocation.levels import AssignmentDivergence, PruneLevels, level_file
from pruning.techniques import SparseGPT
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny

IDS = torch.randint(0, 256, (6, 40), generator=torch.Generator().manual_seed(0))
LEVELS = ("40:64", "32:64", "24:64")
STAGE = """[[stages]]
kind = "layerwise"
technique = {{ name = "{name}", sparsity = {sparsity} }}
"""
SEARCH = 'allocation = {{ name = "search", levels = {levels}, generations = 3, offspring = 6, tokens = 160 }}\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Blocks, Artifact, Path]:
    """A tiny model and its blocks at three levels."""
    folder = tmp_path_factory.mktemp("search")
    artifact = base_artifact(str(tiny.save(folder / "model", num_hidden_layers=3)), folder / "cache")
    blocks = Blocks(base.skeleton(artifact.config), artifact)
    blocks.check(IDS[:2, :8])
    visit = PruneLevels([SparseGPT(level) for level in LEVELS], folder / "levels", None)
    Sweep(blocks, IDS, 2, folder / "levels").visit(visit, "pruning", visit.runs)
    return blocks, artifact, folder / "levels"


def stock(artifact: Artifact, folder: Path, assignment: tuple[int, ...]) -> torch.nn.Module:
    """A model of transformers with its blocks at the levels of `assignment`."""
    model: torch.nn.Module = tiny.build("llama", num_hidden_layers=3)
    weights = {name: artifact.tensor(name).float() for name in artifact.names()}
    for index, level in enumerate(assignment):
        shards = Shards([level_file(folder, level, index)])
        weights |= {name: shards.tensor(name).float() for name in shards.names()}
    model.load_state_dict(weights, strict=False)
    return model


def test_each_block_is_pruned_on_dense_states(made: tuple[Blocks, Artifact, Path]) -> None:
    _, artifact, folder = made
    name = "model.layers.2.mlp.down_proj"
    observed = InputStatistics((Gram,), 128)
    dense = stock(artifact, folder, ())
    hook = dense.get_submodule(name).register_forward_pre_hook(lambda _, args: observed.update(args[0]))
    with torch.no_grad():
        dense(input_ids=IDS, use_cache=False)
    hook.remove()
    for number, level in enumerate(LEVELS):
        weight = artifact.tensor(f"{name}.weight").float()
        SparseGPT(level).apply(weight, observed)
        found = Shards([level_file(folder, number, 2)]).tensor(f"{name}.weight").float()
        kept = (found != 0).view(64, 2, 64).sum(dim=2)
        assert (kept == int(level[:2])).all()
        assert ((found != 0) == (weight != 0)).float().mean() > 0.98
        assert (found - weight).norm() < 0.1 * weight.norm()


def test_the_divergence_is_that_of_stock_transformers(made: tuple[Blocks, Artifact, Path]) -> None:
    blocks, artifact, folder = made
    assignments = [(1, 1, 1), (0, 2, 1), (0, 1, 2), (2, 2, 2), (0, 2, 1)]
    found = AssignmentDivergence(blocks, IDS, folder)(assignments, [1, 4])
    with torch.no_grad():
        target = stock(artifact, folder, ())(input_ids=IDS[[1, 4]]).logits.double().log_softmax(-1)
        for assignment, value in zip(assignments, found, strict=True):
            own = stock(artifact, folder, assignment)(input_ids=IDS[[1, 4]]).logits.double().log_softmax(-1)
            assert value == pytest.approx(float((target.exp() * (target - own)).sum(-1).mean()), rel=1e-3, abs=1e-6)
    assert found[0] < found[3]


def test_common_prefixes_of_assignments_run_once(
    made: tuple[Blocks, Artifact, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, _, folder = made
    measure = AssignmentDivergence(blocks, IDS, folder)
    measure([(1, 1, 1)], [0])
    runs: list[int] = []
    original = Blocks.run

    def run(self: Blocks, index: int, *rest: object, **more: object) -> torch.Tensor:
        runs.append(index)
        return original(self, index, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Blocks, "run", run)
    measure([(1, 1, 1), (1, 0, 2), (1, 0, 1)], [0])
    assert [runs.count(index) for index in range(3)] == [1, 2, 3]


def prune(path: Path, folder: Path, output: str = "out") -> int:
    return main(["prune", str(path), "--output", str(folder / output), "--base-cache", str(folder / "base")])


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sparsity", "levels"),
    [("sparsegpt", '"32:64"', '["24:64", "32:64", "40:64"]'), ("magnitude", "0.5", "[0.4, 0.5, 0.6]")],
)
def test_the_levels_found_are_in_lineage_and_weights(
    recipe: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    sparsity: str,
    levels: str,
) -> None:
    monkeypatch.setattr(SearchState, "beats", True)  # whatever chance says of so small a model
    stage = STAGE.format(name=name, sparsity=sparsity) + SEARCH.format(levels=levels)
    assert prune(recipe(stage), tmp_path) == 0
    [step] = Artifact.open(tmp_path / "out").lineage.steps
    record = step.options["allocation"]
    assert (record["name"], record["generations"], record["kept"]) == ("search", 3, "searched")
    removed = [1 - int(level[:2]) / 64 if isinstance(level, str) else level for level in record["levels"]]
    assert numpy.mean(removed) == pytest.approx(0.5)
    assert len(set(removed)) > 1
    for index, fraction in enumerate(removed):
        for matrix in ("self_attn.k_proj", "mlp.down_proj"):
            assert step.sparsity[f"model.layers.{index}.{matrix}.weight"] == pytest.approx(fraction, abs=1e-3)
    assert record["divergence"].keys() == {"uniform", "searched"}


@pytest.mark.slow
def test_a_search_that_finds_nothing_changes_nothing(
    recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(SearchState, "beats", False)
    plain = STAGE.format(name="sparsegpt", sparsity='"32:64"')
    assert prune(recipe(plain), tmp_path, "plain") == 0
    assert prune(recipe(plain + SEARCH.format(levels='["24:64", "32:64", "40:64"]')), tmp_path) == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")
    assert "uniform sparsity is used, as nothing beat it" in caplog.text
    record = Artifact.open(tmp_path / "out").lineage.steps[0].options["allocation"]
    assert (record["kept"], record["levels"]) == ("uniform", ["32:64"] * 6)


@pytest.mark.slow
def test_stopped_anywhere_it_ends_with_the_same_artifact(
    recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SearchState, "beats", True)
    path = recipe(STAGE.format(name="wanda", sparsity='"32:64"') + SEARCH.format(levels='["24:64", "32:64", "40:64"]'))
    assert prune(path, tmp_path, "whole") == 0
    places: list[tuple[Any, str, int, int]] = [
        (PruneLevels, "__call__", 5, 2),  # stopped in the fifth block: two are left
        (AssignmentDivergence, "__call__", 5, 8),  # in the second of three generations, of three calls each
        (search, "_say", 1, 1),
    ]
    for owner, name, when, most in places:
        calls = stopping(monkeypatch, owner, name, when)
        assert prune(path, tmp_path) == 130
        calls[:] = [0] * 100
        assert prune(path, tmp_path) == 0
        assert len(calls) - 100 <= most, "what was finished was done again"
        monkeypatch.undo()
        monkeypatch.setattr(SearchState, "beats", True)
        assert weights(tmp_path / "out") == weights(tmp_path / "whole")
        shutil.rmtree(tmp_path / "out")


def stopping(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: int) -> list[int]:
    """Have the call `when` of `owner.name` interrupted; returns a list that grows with each call."""
    original, calls = getattr(owner, name), list[int]()

    def call(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == when:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize(
    ("sparsity", "levels", "more", "sentence"),
    [
        ('"32:64"', '["24:64", "40:64"]', "", "sparsity 32:64 must be one of the levels"),
        ('"32:64"', '["24:64", "32:64", "48:64"]', "", "the levels 24:64, 32:64, 48:64 are not in equal steps"),
        ('"32:64"', '["32:64", "32:64"]', "", "are not in equal steps"),
        ('"2:4"', '["2:4", "3:4"]', "", 'the level "2:4" is neither a fraction nor "k:64"'),
        ('"32:64"', "[0.5, 0.6]", "", 'must all be fractions or all "k:64"'),
        ("0.5", "[0.5, 1.6]", "", "Expected `float` < 1.0 - at `$.stages[0].allocation.levels[1]`"),
        ("0.5", "[0.5, 0.6]", 'order = "sequential"\n', 'order must be "block"'),
        (
            "0.5",
            "[0.5, 0.6]",
            "x",
            "a search with tokens = 1600 needs twice that many calibration tokens, 100 sequences",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_work(
    recipe: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sparsity: str,
    levels: str,
    more: str,
    sentence: str,
) -> None:
    text = STAGE.format(name="wanda", sparsity=sparsity) + SEARCH.format(levels=levels)
    path = recipe(text.replace("160", "1600") if more == "x" else text + more)
    assert prune(path, tmp_path) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "base").exists()


def test_blocks_of_different_sizes_are_refused(made: tuple[Blocks, Artifact, Path]) -> None:
    blocks = made[0]
    search.refuse_unequal(blocks)
    original = blocks.linears
    blocks.linears = lambda index: dict(list(original(index).items())[index == 1 :])  # type: ignore[method-assign]
    with pytest.raises(RecipeError, match=r"the blocks have between [\d,]+ and [\d,]+ weights"):
        search.refuse_unequal(blocks)
    blocks.linears = original  # type: ignore[method-assign]
