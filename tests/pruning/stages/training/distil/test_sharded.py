"""Distillation of a model divided among processes: the model of one process, kills and torchrun included."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.commands.__main__ import main
from pruning.errors import RecipeError, TeamBroken
from pruning.model.weights import InMemory
from pruning.recipe.recipe import read
from pruning.recipe.training import Distill, LoRA, Quantise
from pruning.run.pipeline import run
from pruning.stages.inputs import prepare
from pruning.stages.team import Team
from pruning.stages.training.distil.sharded import OwnRows, ShardedStudent, noticing_lost_process
from pruning.stages.training.student import TrainedParameters
from server.artifact.checkpoint.reader import Artifact
from tests.pruning.conftest import RECIPE
from tests.pruning.stages.training.test_team import Command

STAGES = """
[[stages]]
kind = "layerwise"
technique = {{ name = "magnitude", sparsity = "2:4" }}
[[stages]]
kind = "distill"
tokens = 2048
length = 32
batch = 4
interval = 2
held_out = 6
learning_rate = 1e-3
embeddings = true
memory = "{memory}"
"""


def written(folder: Path, model: Path, text: Path, memory: str) -> Path:
    path = folder / f"{memory}.toml"
    path.write_text(RECIPE.format(model=model, text=text, stages=STAGES.format(memory=memory)))
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Path:
    return written(tmp_path_factory.mktemp("sharded"), model, text, "sharded")


@pytest.fixture(scope="module")
def sharded(recipe: Path) -> Artifact:
    """The artifact of two processes that nobody disturbs; 257 rows of the embeddings do not divide among them."""
    command = Command(recipe, recipe.parent / "sharded")
    code, _, errors = command.finish()
    assert code == 0, errors
    return Artifact.open(command.output)


def test_two_processes_train_the_model_that_one_trains(
    sharded: Artifact, recipe: Path, model: Path, text: Path
) -> None:
    folder = recipe.parent
    plain = written(folder, model, text, "plenty")
    assert main(["prune", str(plain), "--output", str(folder / "one"), "--base-cache", str(folder / "base")]) == 0
    alone = Artifact.open(folder / "one")
    one, two = (artifact.lineage.steps[1].recovery for artifact in (alone, sharded))
    assert one
    assert two
    assert two.before == pytest.approx(one.before, rel=1e-3)
    assert two.after == pytest.approx(one.after, rel=1e-3)
    assert two.after < two.before
    assert sharded.names() == alone.names()
    differ = total = 0
    for name in alone.names():
        expected, found = alone.tensor(name).float(), sharded.tensor(name).float()
        differ += int(((expected - found).abs() > expected.abs() / 128).sum())
        total += expected.numel()
        if ".layers." in name:
            assert torch.equal(expected == 0, found == 0), name
    assert differ / total < 0.02, f"{differ} of {total}"


@pytest.mark.slow
@pytest.mark.parametrize("leader", [True, False])
def test_a_killed_process_changes_no_bit(recipe: Path, sharded: Artifact, leader: bool) -> None:
    command = Command(recipe, recipe.parent / f"killed-{leader}")
    code, errors = command.stop("stage-1/state.safetensors", leader=leader)
    assert "run the same command again to resume" in errors
    assert leader or code == 2
    code, _, errors = command.finish()
    assert code == 0, errors
    assert "step 2: held-out score" not in errors, "it began anew"
    assert Artifact.open(command.output).lineage.steps[-1].digest == sharded.lineage.steps[-1].digest


@pytest.mark.slow
def test_torchrun_starts_the_processes_too(recipe: Path, sharded: Artifact) -> None:
    output = recipe.parent / "torchrun"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               "pruning.commands", "prune", str(recipe), "--output", str(output),
               "--base-cache", str(recipe.parent / "base")]  # fmt: skip
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("base, 16 bits") == 1, "only the first process prints"
    assert Artifact.open(output).lineage.steps[-1].digest == sharded.lineage.steps[-1].digest


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1, 'memory = "sharded" divides the model among processes, and there is one: give --processes 2 or more'),
        (4, "held_out = 6 of distill does not divide among 4 processes.* choose a multiple of 4, such as 4"),
    ],
)
def test_processes_that_cannot_share_are_refused_before_any_work(recipe: Path, size: int, message: str) -> None:
    output = recipe.parent / f"refused-{size}"
    inputs = prepare(read(recipe), recipe.parent / "base")
    with pytest.raises(RecipeError, match=message):
        run(inputs, output, recipe.parent / "base", team=Team(0, size))
    assert not (recipe.parent / f"refused-{size}.work" / "stage-0").exists()


@pytest.mark.parametrize("changes", [{"lora": LoRA()}, {"quantise": Quantise()}, {"quantise": "kept"}])
def test_adapters_and_codes_are_refused(changes: dict[str, LoRA]) -> None:
    with pytest.raises(ValueError, match='memory = "sharded" trains the 16-bit weights: leave out lora and quantise'):
        Distill(tokens=1024, memory="sharded", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "size"), [(8, 2), (5, 2), (1, 3), (7, 3)])
def test_rows_are_divided_as_torch_chunks_them(rows: int, size: int) -> None:
    whole = {"weight": torch.arange(rows * 2).view(rows, 2), "step": torch.tensor(3)}
    parts = [OwnRows(InMemory(whole), Team(rank, size)) for rank in range(size)]
    expected = whole["weight"].chunk(size)
    for rank, part in enumerate(parts):
        assert torch.equal(part.tensor("weight"), expected[rank] if rank < len(expected) else torch.empty(0, 2))
        assert part.tensor("step") == 3


class Pair(Team):
    """One of two processes, whose sums a test knows."""

    def total(self, values: Sequence[float]) -> list[float]:
        sent.append(values[0])
        return [float(GRADIENT.double().square().sum())]


GRADIENT = 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
sent: list[float] = []


def test_gradients_are_scaled_by_the_norm_of_all_rows() -> None:
    whole = nn.Parameter(torch.zeros_like(GRADIENT))
    whole.grad = GRADIENT.clone()
    nn.utils.clip_grad_norm_(whole, 1.0)
    sent.clear()
    for rank in (0, 1):
        team = Pair(rank, 2)
        own = team.rows(GRADIENT)
        network = nn.Linear(4, len(own), bias=False)
        student = ShardedStudent(network, TrainedParameters({"weight": network.get_parameter("weight")}, {}), team)
        student.parameters["weight"].grad = own.clone()
        student.combine_gradients(team, 1.0)
        torch.testing.assert_close(student.parameters["weight"].grad, team.rows(whole.grad))
    assert sum(sent) == pytest.approx(float(GRADIENT.double().square().sum()), rel=1e-6)


def test_only_a_lost_process_is_reported_as_one() -> None:
    with pytest.raises(TeamBroken, match="another process of this run has ended"), noticing_lost_process():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer")
    with pytest.raises(RuntimeError, match="out of memory"), noticing_lost_process():
        raise RuntimeError("out of memory")
