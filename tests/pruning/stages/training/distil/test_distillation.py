"""Distillation: loss and schedule against their definitions, exact zeros, rollback, and the artifact."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from pruning.commands.__main__ import main
from pruning.recipe.options import Depth
from pruning.recipe.training import Distill, LoRA
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs
from pruning.stages.structured import depth
from pruning.stages.training.distil.distillation import Distillation, apply
from server.artifact.checkpoint.lineage import Recovery
from tests.pruning.stages.training.conftest import kill_once, stopped_at

STAGE = Distill(
    tokens=1024, length=32, batch=4, interval=2, held_out=6, learning_rate=2e-3, pretraining_tokens=4096
)  # eight steps
RECIPE = """
[[stages]]
kind = "layerwise"
technique = { name = "magnitude", sparsity = "2:4" }
[[stages]]
kind = "distill"
tokens = 2048
length = 32
batch = 4
interval = 2
held_out = 6
"""
UP = "model.layers.1.mlp.up_proj.weight"


def distil(stage: Distill, model: StageModel, inputs: Inputs, folder: Path) -> tuple[StageModel, Recovery]:
    result, step = apply(stage, model, StageContext(inputs, folder))
    assert step.technique == "distill"
    assert step.recovery is not None
    return result, step.recovery


def same_weights(one: StageModel, other: StageModel) -> bool:
    return all(torch.equal(one.source.tensor(name), other.source.tensor(name)) for name in one.source.names())


def test_a_pruned_model_comes_nearer_to_its_base_and_keeps_its_zeros(
    halved: StageModel, inputs: Inputs, tmp_path: Path
) -> None:
    result, record = distil(STAGE, halved, inputs, tmp_path)
    assert not record.rolled_back
    assert record.after < 0.95 * record.before
    for name in halved.source.names():
        before, after = halved.source.tensor(name), result.source.tensor(name)
        assert torch.equal(before == 0, after == 0), name
        if "_proj" in name:
            assert (before != after).double().mean() > 0.3, name  # half are kept, and most of those move
        if "embed" in name or "lm_head" in name:
            assert torch.equal(before, after), name


def test_the_record_has_the_cost(halved: StageModel, inputs: Inputs, tmp_path: Path) -> None:
    result, step = apply(msgspec.structs.replace(STAGE, tokens=128), halved, StageContext(inputs, tmp_path))
    record = step.recovery
    assert record is not None
    block = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64
    assert record.tokens == 128
    assert record.flops == (6 + 2) * 3 * block * 128
    assert record.pretraining_ratio == 128 / 4096
    assert (record.training.sequences, record.held_out.sequences) == (4, 6)
    assert step.options["learning_rate"] == 2e-3
    assert step.parameters == sum(result.source.tensor(name).numel() for name in result.source.names())
    written = msgspec.json.encode(step)
    assert msgspec.json.encode(msgspec.json.decode(written, type=type(step))) == written


def test_a_run_that_scores_worse_is_rolled_back_and_says_so(
    halved: StageModel, inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result, record = distil(msgspec.structs.replace(STAGE, learning_rate=1.0), halved, inputs, tmp_path)
    assert record.rolled_back
    assert record.after > record.before
    assert "training is rolled back: mean KL(base || pruned)" in caplog.text
    assert result == halved


def test_the_best_step_wins_though_later_ones_are_worse(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, best = Distillation._train, {}

    def spoil(self: Distillation, step: int) -> None:
        train(self, step)
        if step == 4:
            best.update(self._student.weights())
        if step == 5:
            for parameter in self._student.parameters.values():
                parameter.data.mul_(3)

    monkeypatch.setattr(Distillation, "_train", spoil)
    result, record = distil(STAGE, halved, inputs, tmp_path)
    assert not record.rolled_back
    assert all(torch.equal(result.source.tensor(name), tensor) for name, tensor in best.items())
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000004.safetensors"]


def test_a_shorter_model_is_distilled_too_and_embeddings_on_request(inputs: Inputs, tmp_path: Path) -> None:
    whole = StageModel(inputs.base.config, inputs.base)
    shorter, _ = depth.apply(Depth(1), whole, StageContext(inputs, tmp_path / "depth"))
    stage = msgspec.structs.replace(STAGE, embeddings=True, temperature=2.0)
    result, record = distil(stage, shorter, inputs, tmp_path / "distil")
    assert record.after < record.before
    embedding = "model.embed_tokens.weight"
    assert not torch.equal(result.source.tensor(embedding), shorter.source.tensor(embedding))
    assert result.config["num_hidden_layers"] == 2


def test_adapters_are_distilled_and_merged_under_the_mask(halved: StageModel, inputs: Inputs, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    stage = msgspec.structs.replace(STAGE, lora=LoRA(rank=4), learning_rate=1e-2)
    result, record = distil(stage, halved, inputs, tmp_path)
    assert record.after < record.before
    assert record.formula.startswith("4 N T")
    for name in halved.source.names():
        assert torch.equal(halved.source.tensor(name) == 0, result.source.tensor(name) == 0), name


@pytest.mark.parametrize("when", [1, 3, 8])
def test_a_stopped_run_resumes_from_the_last_interval(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    whole, expected = distil(STAGE, halved, inputs, tmp_path / "whole")
    steps = stopped_at(monkeypatch, Distillation, when)
    with pytest.raises(KeyboardInterrupt):
        distil(STAGE, halved, inputs, tmp_path / "cut")
    result, record = distil(STAGE, halved, inputs, tmp_path / "cut")
    assert steps == [*range(1, when + 1), *range((when - 1) // 2 * 2 + 1, 9)]
    assert same_weights(whole, result)
    assert record == expected
    steps.clear()
    distil(STAGE, halved, inputs, tmp_path / "cut")
    assert not steps, "a finished run is not done again"


def test_other_texts_start_over(halved: StageModel, inputs: Inputs, tmp_path: Path) -> None:
    _, first = distil(STAGE, halved, inputs, tmp_path)
    _, second = distil(msgspec.structs.replace(STAGE, buckets=(1, 2, 3)), halved, inputs, tmp_path)
    assert first.training.digest != second.training.digest
    assert first.before != second.before


def test_killed_it_ends_with_the_identical_artifact(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    path = recipe(RECIPE)
    cache = str(tmp_path / "base")
    assert main(["prune", str(path), "--output", str(tmp_path / "whole"), "--base-cache", cache]) == 0
    arguments = ["prune", str(path), "--output", str(tmp_path / "cut"), "--base-cache", cache]
    kill_once(tmp_path / "cut.work" / "stage-1" / "state.safetensors", arguments)
    assert not (tmp_path / "cut").exists(), "it was to be killed in the middle"
    assert main(arguments) == 0
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert hashlib.sha256(whole).digest() == hashlib.sha256(cut).digest()
