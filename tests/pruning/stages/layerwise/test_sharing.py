"""Calibration shared out over processes: the same model each time, also after kills, and nearly that of one process."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pruning.passes.statistics import Gram, InputMean, InputNorm, InputStatistics
from pruning.stages.team import ALONE
from server.artifact.checkpoint.reader import Artifact
from tests.pruning.conftest import RECIPE
from tests.pruning.stages.training.test_team import Command

STAGES = """
[[stages]]
kind = "layerwise"
technique = { name = "gptq", sparsity = "2:4", bits = 8, group = 32 }
order = "sequential"
correction = 0.5
[[stages]]
kind = "layerwise"
technique = { name = "wanda", sparsity = 0.6 }
allocation = { name = "owl" }
"""


def test_statistics_of_shares_add_up_to_those_of_all_sequences() -> None:
    """In float64, where the order of the sums shows no more, they are the textbook's."""
    inputs = torch.randn(6, 10, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    shares = [InputStatistics((Gram, InputNorm, InputMean), 8) for _ in range(2)]
    for share, part in zip(shares, (inputs[:4], inputs[4:]), strict=True):
        share.update(part)
    sent: list[Tensor] = []
    shares[1].combine(lambda sums: sent.append(sums.clone()))
    waiting = iter(sent)
    shares[0].combine(lambda sums: setattr(sums, "data", sums + next(waiting)))
    rows = inputs.double().flatten(0, 1)
    torch.testing.assert_close(shares[0][Gram].value.double(), rows.T @ rows * 2 / 6, rtol=1e-5, atol=1e-5)
    norms = (rows.square().sum(0) / 6).sqrt()
    torch.testing.assert_close(shares[0][InputNorm].value.double(), norms, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shares[0][InputMean].mean, rows.mean(0))
    torch.testing.assert_close(shares[0][InputMean].variance, rows.var(0, correction=0))


def test_one_process_exchanges_nothing() -> None:
    sums = torch.ones(3)
    ALONE.add_in_order(sums)
    assert sums.tolist() == [1, 1, 1]
    assert ALONE.least(4) == 4
    assert ALONE.send_out(0, sums, "made") == "made"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Path:
    path = tmp_path_factory.mktemp("sharing") / "recipe.toml"
    path.write_text(RECIPE.format(model=model, text=text, stages=STAGES))
    return path


@pytest.fixture(scope="module")
def shared(recipe: Path) -> Artifact:
    """The artifact of two processes that nobody disturbs."""
    command = Command(recipe, recipe.parent / "shared")
    code, _, errors = command.finish()
    assert code == 0, errors
    assert "does all the work" not in errors
    return Artifact.open(command.output)


@pytest.mark.slow
def test_two_processes_give_nearly_the_model_of_one(tmp_path: Path, model: Path, text: Path) -> None:
    """Sums are rounded otherwise, so a tie may be broken otherwise; Gram matrices of few tokens would amplify it."""
    recipe = tmp_path / "recipe.toml"
    stages = '[[stages]]\nkind = "layerwise"\ntechnique = { name = "wanda", sparsity = 0.5 }\n'
    recipe.write_text(RECIPE.format(model=model, text=text, stages=stages))
    one, two = (Command(recipe, tmp_path / str(count), processes=count) for count in (1, 2))
    assert [command.finish()[0] for command in (one, two)] == [0, 0]
    first, second = Artifact.open(one.output), Artifact.open(two.output)
    names = [name for name in first.names() if re.search(r"(self_attn|mlp)\.\w+_proj\.weight", name)]
    ours, theirs = (torch.cat([each.tensor(name).float().flatten() for name in names]) for each in (first, second))
    assert ((ours == 0) != (theirs == 0)).float().mean() < 0.001
    assert (ours == 0).float().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("leader", [True, False])
@pytest.mark.parametrize("file", ["stage-0/block-0000.safetensors", "stage-1/block-0001.safetensors"])
def test_a_killed_process_changes_no_bit(recipe: Path, shared: Artifact, leader: bool, file: str) -> None:
    command = Command(recipe, recipe.parent / f"killed-{leader}-{file[6]}")
    code, errors = command.stop(file, leader=leader)
    if not leader:
        assert code, errors
        assert "run the same command again to resume" in errors
    code, _, errors = command.finish()
    assert code == 0, errors
    assert Artifact.open(command.output).lineage.steps[-1].digest == shared.lineage.steps[-1].digest


@pytest.mark.slow
def test_another_number_of_processes_cannot_go_on(recipe: Path) -> None:
    command = Command(recipe, recipe.parent / "begun")
    command.stop("stage-0/block-0000.safetensors", leader=True)
    code, _, errors = Command(recipe, command.output, processes=1).finish()
    assert code == 2
    assert "was begun with --processes 2, and sums over 1 would be rounded otherwise: give --processes 2" in errors
