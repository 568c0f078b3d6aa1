"""Shearing: meets the target, records its cost, survives kills, refuses impossible targets early."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.recipe.training import Shear
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs
from pruning.stages.training import run
from pruning.stages.training.journal import State
from pruning.stages.training.network import Precision
from pruning.stages.training.shear.shearing import Shearing, apply
from server.artifact.checkpoint.reader import Artifact
from tests.pruning.stages.training.conftest import stopped_at

STAGE = Shear(
    tokens=512,
    length=32,
    batch=4,
    interval=2,
    held_out=6,
    learning_rate=1e-3,
    layers=2,
    hidden=48,
    kv_groups=1,
    ffn=64,
)  # four steps
RECIPE = """
[[stages]]
kind = "shear"
tokens = 512
length = 32
batch = 4
interval = 2
held_out = 6
layers = 2
hidden = 48
kv_groups = 1
ffn = 64
"""


@pytest.fixture
def whole(inputs: Inputs) -> StageModel:
    """The model of three blocks."""
    return StageModel(inputs.base.config, inputs.base)


def shape_of(config: dict[str, Any]) -> tuple[int, ...]:
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return tuple(config[key] for key in keys)


def test_a_recipe_without_a_target_is_refused(
    recipe: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe('[[stages]]\nkind = "shear"\ntokens = 100\n')
    assert main(["prune", str(path), "--output", "none"]) == 2
    assert "nothing to prune: give at least one of layers, hidden, kv_groups and ffn" in capsys.readouterr().err


def test_an_impossible_target_is_refused_before_any_earlier_stage_runs(
    recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(f'[[stages]]\nkind = "depth"\nremove = 1\n{RECIPE}'.replace("layers = 2", "layers = 5"))
    arguments = ["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]
    assert main(arguments) == 2
    assert "layers = 5 removes none of the model's 2 layers" in capsys.readouterr().err
    assert not (tmp_path / "out.work" / "stage-0").exists(), "the first stage was begun"


def test_weights_learn_and_the_record_has_the_cost(whole: StageModel, inputs: Inputs, tmp_path: Path) -> None:
    stage = msgspec.structs.replace(STAGE, tokens=16 * 128, interval=16)
    result, step = apply(stage, whole, StageContext(inputs, tmp_path))
    assert step.recovery is not None
    assert step.recovery.after < step.recovery.before - 0.1
    assert not step.recovery.rolled_back
    assert shape_of(result.config) == (2, 48, 2, 1, 64)
    assert len(step.removed_blocks) == 1
    assert step.parameters == sum(result.source.tensor(name).numel() for name in result.source.names())
    assert step.recovery.flops == 6 * 16 * 128 * 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64)


def test_pruned_weights_stay_zero(halved: StageModel, inputs: Inputs, tmp_path: Path) -> None:
    stage = Shear(tokens=512, length=32, batch=4, held_out=6, layers=2, learning_rate=1e-3)
    result, step = apply(stage, halved, StageContext(inputs, tmp_path))
    stay = [index for index in range(3) if index not in step.removed_blocks]
    for name in result.source.names():
        parts = name.split(".")
        if "_proj" in name:
            old = halved.source.tensor(".".join([*parts[:2], str(stay[int(parts[2])]), *parts[3:]]))
            new = result.source.tensor(name)
            assert torch.equal(old == 0, new == 0), name
            assert (old != new).double().mean() > 0.3


@pytest.mark.parametrize("when", [1, 4])
def test_a_stopped_run_resumes_from_the_last_interval(
    whole: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    expected, record = apply(STAGE, whole, StageContext(inputs, tmp_path / "whole"))
    steps = stopped_at(monkeypatch, Shearing, when)
    with pytest.raises(KeyboardInterrupt):
        apply(STAGE, whole, StageContext(inputs, tmp_path / "cut"))
    result, again = apply(STAGE, whole, StageContext(inputs, tmp_path / "cut"))
    assert steps == [*range(1, when + 1), *range((when - 1) // 2 * 2 + 1, 5)]
    assert all(torch.equal(expected.source.tensor(name), result.source.tensor(name)) for name in result.source.names())
    assert (again.recovery, again.removed_blocks) == (record.recovery, record.removed_blocks)
    steps.clear()
    apply(STAGE, whole, StageContext(inputs, tmp_path / "cut"))
    assert not steps, "a finished run is not done again"


def test_a_recipe_becomes_an_ordinary_smaller_model(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    arguments = ["prune", str(recipe(RECIPE)), "--base-cache", str(tmp_path / "base"), "--output"]
    digests = []
    for name in ("one", "two"):
        assert main([*arguments, str(tmp_path / name)]) == 0
        digests.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    artifact = Artifact.open(tmp_path / "one")
    assert shape_of(artifact.config) == (2, 48, 2, 1, 64)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=torch.float32)
    assert loaded.model.layers[1].self_attn.o_proj.weight.shape == (48, 32)
    assert artifact.lineage.steps[0].options["hidden"] == 48
    assert artifact.lineage.inputs.keys() > {"recipe", "base"}
    assert any(key.startswith("text ") for key in artifact.lineage.inputs)


class Begun(BaseException):
    """Stops a run before its first step."""


def test_the_first_score_is_the_whole_models_later_ones_the_cut_models(
    whole: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Shearing] = []

    def stop(self: Shearing, _: State) -> None:
        found.append(self)
        raise Begun

    monkeypatch.setattr(run, "choose_precision", lambda device: Precision(torch.float32, "exact"))
    monkeypatch.setattr(Shearing, "run", stop)
    with pytest.raises(Begun):
        apply(STAGE, whole, StageContext(inputs, tmp_path))
    [shear] = found
    shear._hooks.use(shear._masks.decide())
    masked = shear._measure(shear._student.network)
    shear._begin()
    shear._score(1, shear._student.scored_network())
    (_, first), (_, second) = shear._state.scores
    assert second == pytest.approx(masked, abs=0.002)  # what is stored is rounded to bfloat16
    stock = AutoModelForCausalLM.from_pretrained(inputs.base.path, dtype=torch.float32)
    with torch.no_grad():
        losses = [stock(input_ids=ids[None], labels=ids[None]).loss for ids in shear._data.held_out]
    assert first == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert abs(first - second) > 0.005
