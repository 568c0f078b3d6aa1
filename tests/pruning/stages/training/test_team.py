"""Data-parallel training gives the model of a single process, even after kills."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pruning.commands.__main__ import main
from pruning.errors import RecipeError
from pruning.recipe.recipe import read
from pruning.run.pipeline import run
from pruning.stages.inputs import prepare
from pruning.stages.team import ALONE, Team
from server.artifact.checkpoint.reader import Artifact
from tests.pruning.conftest import RECIPE
from tests.support.prune_process import start, wait_until

STAGES = """
[[stages]]
kind = "layerwise"
technique = { name = "magnitude", sparsity = "2:4" }
[[stages]]
kind = "distill"
tokens = 2048
length = 32
batch = 4
interval = 2
held_out = 5
[[stages]]
kind = "shear"
source = "self"
tokens = 512
length = 32
batch = 4
interval = 2
held_out = 5
hidden = 48
ffn = 96
[[stages]]
kind = "continue"
tokens = 512
length = 32
batch = 4
interval = 2
held_out = 5
domains = [{ name = "low", buckets = [0, 1, 2] }, { name = "high", buckets = [3, 4, 5] }]
"""


class Command:
    """`secateur prune` with two or other `processes`, led by a process of its own."""

    def __init__(self, recipe: Path, output: Path, processes: int = 2) -> None:
        self.output = output
        self._files = output.with_name(f"{output.name}.out"), output.with_name(f"{output.name}.err")
        self._arguments = ["prune", str(recipe), "--output", str(output), "--base-cache", str(recipe.parent / "base")]
        self._arguments += ["--processes", str(processes)]

    def finish(self) -> tuple[int | None, str, str]:
        """Exit code, standard output and standard error of an undisturbed run."""
        process = start(self._arguments, *self._files)
        process.join(300)
        output, errors = (file.read_text() for file in self._files)
        return process.exitcode, output, errors

    def stop(self, file: str, *, leader: bool) -> tuple[int | None, str]:
        """Kill one process once `file` of the work directory is there.

        Returns the leader's exit code and standard error after both have ended.
        """
        process = start(self._arguments, *self._files)
        path = self.output.with_name(self.output.name + ".work") / file
        wait_until(path.exists, process, self._files[1])
        assert process.pid
        [follower] = children(process.pid)
        os.kill(process.pid if leader else follower, signal.SIGKILL)
        process.join(120)
        while running(follower):
            time.sleep(0.01)
        return process.exitcode, self._files[1].read_text()


def children(parent: int) -> list[int]:
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    found = [re.match(r"(\d+) \(.*\) \w (\d+)", stat) for stat in stats]
    return [int(match[1]) for match in found if match and int(match[2]) == parent]


def running(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Path:
    path = tmp_path_factory.mktemp("team") / "recipe.toml"
    path.write_text(RECIPE.format(model=model, text=text, stages=STAGES))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path) -> tuple[Artifact, str, str]:
    """The artifact of an uninterrupted run of two processes, and its output."""
    command = Command(recipe, recipe.parent / "whole")
    code, output, errors = command.finish()
    assert code == 0, errors
    return Artifact.open(command.output), output, errors


def pairs(one: Artifact, two: Artifact) -> dict[str, tuple[Tensor, Tensor]]:
    """For each block, the feed-forward units that shearing kept in both models: indices in one and in the other."""
    found = {}
    for name in one.names():
        if name.endswith(".mlp.up_proj.weight"):
            ours, theirs = one.tensor(name).float()[:, None], two.tensor(name).float()[None]
            alike = ((ours - theirs).abs() <= ours.abs() / 128 + 1e-3).float().mean(dim=2) > 0.9  # [units, units]
            mine, yours = alike.nonzero(as_tuple=True)
            assert len(set(mine.tolist())) == len(mine), "no unit is two of the other's"
            found[name.removesuffix("up_proj.weight")] = (mine, yours)
    return found


def test_two_processes_make_the_model_that_one_makes(whole: tuple[Artifact, str, str], recipe: Path) -> None:
    together, output, errors = whole
    folder = recipe.parent
    assert main(["prune", str(recipe), "--output", str(folder / "one"), "--base-cache", str(folder / "base")]) == 0
    alone = Artifact.open(folder / "one")
    for one, two in zip(alone.lineage.steps, together.lineage.steps, strict=True):
        if one.recovery and two.recovery:
            assert two.recovery.before == pytest.approx(one.recovery.before, rel=1e-3)
            assert two.recovery.after == pytest.approx(one.recovery.after, rel=1e-3)
            assert (two.recovery.tokens, two.recovery.training) == (one.recovery.tokens, one.recovery.training)
    assert together.names() == alone.names()
    differ = total = 0
    units = pairs(alone, together)
    assert 96 * len(units) - sum(len(mine) for mine, _ in units.values()) <= 2, "shearing may waver between two units"
    for name in alone.names():
        expected, found = alone.tensor(name).float(), together.tensor(name).float()
        if ".mlp." in name:
            mine, yours = units[name[: name.index(".mlp.") + 5]]
            axis = 1 if "down_proj" in name else 0
            expected, found = expected.index_select(axis, mine), found.index_select(axis, yours)
        # gradients differ by their rounding alone; where one is hardly more than that, Adam may turn the other way
        differ += int(((expected - found).abs() > expected.abs() / 128).sum())
        total += expected.numel()
        assert torch.equal(expected == 0, found == 0), name
    assert differ / total < 0.01, f"{differ} of {total}"
    assert output.count("base, 16 bits") == 1, "only the first process prints"
    assert errors.count("step 16: held-out score") == 1
    assert errors.count("sampling from the base itself") == 1
    recovery = together.lineage.steps[2].recovery
    assert recovery
    assert recovery.training.source == "self"


def test_killed_at_any_process_it_ends_with_the_identical_artifact(
    whole: tuple[Artifact, str, str], recipe: Path
) -> None:
    command = Command(recipe, recipe.parent / "cut")
    code, errors = command.stop("stage-1/state.safetensors", leader=False)
    assert code == 2
    assert errors.endswith("process 2 of 2 was killed by signal 9: run the same command again to resume\n")
    code, errors = command.stop("stage-3/state.safetensors", leader=True)
    assert code == -signal.SIGKILL
    assert "another process of this run has ended" in errors
    assert not command.output.exists()
    code, _, errors = command.finish()
    assert code == 0, errors
    assert "step 2: held-out score" not in errors, "it began anew"
    weights = [(path / "model.safetensors").read_bytes() for path in (whole[0].path, command.output)]
    assert weights[0] == weights[1]


def test_a_batch_that_does_not_divide_is_refused_before_any_work(recipe: Path) -> None:
    output = recipe.parent / "three"
    inputs = prepare(read(recipe), recipe.parent / "base")
    with pytest.raises(RecipeError, match=r"batch = 4 of the stage distill .* 3 processes: choose a multiple of 3"):
        run(inputs, output, recipe.parent / "base", team=Team(0, 3))
    assert not (recipe.parent / "three.work" / "stage-0").exists()


@pytest.mark.parametrize(("sequences", "size"), [(8, 2), (5, 2), (1, 3), (7, 3)])
def test_shares_cover_the_batch_in_order_and_are_equal_if_it_divides(sequences: int, size: int) -> None:
    ids = torch.arange(sequences * 2).view(sequences, 2)
    parts = [Team(rank, size).part(ids) for rank in range(size)]
    assert torch.equal(torch.cat(parts), ids)
    assert max(map(len, parts)) - min(map(len, parts)) == (sequences % size > 0)


def test_a_team_of_one_exchanges_nothing() -> None:
    gradient = torch.ones(3)
    ALONE.average([gradient])
    ALONE.check(7, "distill")
    assert ALONE.total([0.1, 2.0]) == [0.1, 2.0]
    assert gradient.tolist() == [1, 1, 1]
    with pytest.raises(RecipeError, match=r"batch = 7 of the stage shear .* among 2 processes: choose a multiple of 2"):
        Team(0, 2).check(7, "shear")
