"""Reconstruction: towards the base's own states, block by block, never worse on held-out sequences, resumable."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from pruning.model.weights import Shards
from pruning.recipe.training import Reconstruct
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs
from pruning.stages.training.network import load
from pruning.stages.training.optimiser import Optimiser
from pruning.stages.training.reconstruct import block as training
from pruning.stages.training.reconstruct.block import Block, Fitted, relative_error
from pruning.stages.training.reconstruct.reconstruction import ReconstructBlock, apply
from pruning.stages.training.student import Student
from server.artifact.checkpoint.lineage import Recovery
from tests.reference import slow

STAGE = Reconstruct(steps=12, batch=2, learning_rate=2e-3, interval=4, held_out=3)
HALVES = msgspec.structs.replace(STAGE, unit="halves")


def reconstruct(stage: Reconstruct, model: StageModel, inputs: Inputs, folder: Path) -> tuple[StageModel, Recovery]:
    result, step = apply(stage, model, StageContext(inputs, folder))
    assert step.technique == "reconstruct"
    assert step.recovery is not None
    assert step.options["steps"] == stage.steps
    return result, step.recovery


def same_weights(one: StageModel, other: StageModel) -> bool:
    return all(torch.equal(one.source.tensor(name), other.source.tensor(name)) for name in one.source.names())


def test_the_error_is_relative_to_each_token() -> None:
    torch.manual_seed(0)
    output, target = torch.randn(2, 2, 3, 5).double()
    target[0, 0] *= 1000  # a token with a huge state counts as much as any other
    expected = slow.relative_error(output.view(6, 5).numpy(), target.view(6, 5).numpy())
    assert relative_error(output, target).item() == pytest.approx(expected)
    assert relative_error(output, torch.zeros_like(output)).isfinite()


@pytest.mark.parametrize("stage", [STAGE, HALVES])
def test_blocks_come_nearer_to_the_base_and_keep_their_zeros(
    halved: StageModel, inputs: Inputs, tmp_path: Path, stage: Reconstruct
) -> None:
    result, record = reconstruct(stage, halved, inputs, tmp_path)
    assert not record.rolled_back
    assert record.after < 0.9 * record.before
    for name in halved.source.names():
        before, after = halved.source.tensor(name), result.source.tensor(name)
        if ".layers." not in name:
            assert torch.equal(before, after), name
        elif "_proj" in name:
            assert torch.equal(before == 0, after == 0), name
            assert (before != after).double().mean() > 0.3, name
    attention, mlp = 64 * 64 * 2 + 64 * 32 * 2 + 64, 3 * 64 * 128 + 64
    block, passes = attention + mlp, 2 if stage is HALVES else 1
    trained = 2 * (2 * block) + 4 * attention + 4 * mlp if stage is HALVES else 6 * block
    assert record.tokens == passes * 12 * 2 * 32
    assert record.flops == 3 * trained * 768 + passes * 2 * 3 * block * 12 * 32
    assert (record.training.sequences, record.held_out.sequences) == (9, 3)


def test_the_targets_are_the_base_s_states_and_the_inputs_the_result_s_own(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fit(stage: Reconstruct, block: Block, *rest: Any) -> Fitted:
        seen.append((block.before.clone(), block.target.clone()))
        return training.fit(stage, block, *rest)

    monkeypatch.setattr("pruning.stages.training.reconstruct.reconstruction.fit", fit)
    result, _ = reconstruct(STAGE, halved, inputs, tmp_path)
    ids = inputs.calibration[0]
    own, base = (
        load(model, torch.float32)(ids, output_hidden_states=True).hidden_states
        for model in (result, StageModel(inputs.base.config, inputs.base))
    )
    for index, (before, target) in enumerate(seen):
        torch.testing.assert_close(before, own[index])
        if index < 2:  # the last state that transformers gives is normalised
            torch.testing.assert_close(target, base[index + 1])


def test_each_half_is_trained_towards_the_bases_state_after_it(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], torch.Tensor]] = []

    def fit(stage: Reconstruct, block: Block, student: Student, *rest: Any) -> Fitted:
        seen.append(({name.split(".", 3)[3] for name in student.parameters}, block.target.clone()))
        return training.fit(stage, block, student, *rest)

    monkeypatch.setattr("pruning.stages.training.reconstruct.reconstruction.fit", fit)
    reconstruct(HALVES, halved, inputs, tmp_path)
    network: Any = load(StageModel(inputs.base.config, inputs.base), torch.float32)
    between: list[torch.Tensor] = []
    for layer in network.model.layers:
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, arguments: between.append(arguments[0]))
    after = network(inputs.calibration[0], output_hidden_states=True).hidden_states[1:]
    for index in range(3):
        (first, target), (second, last) = seen[2 * index : 2 * index + 2]
        assert {name.split(".")[0] for name in first} == {"self_attn", "input_layernorm"}
        assert {name.split(".")[0] for name in second} == {"mlp", "post_attention_layernorm"}
        torch.testing.assert_close(target, between[index])
        if index < 2:  # the last state that transformers gives is normalised
            torch.testing.assert_close(last, after[index])


def test_a_half_that_gets_worse_is_rolled_back_alone(
    halved: StageModel,
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fit(stage: Reconstruct, block: Block, student: Student, *rest: Any) -> Fitted:
        attention = any("self_attn" in name for name in student.parameters)
        spoilt = msgspec.structs.replace(stage, learning_rate=1.0) if attention else stage
        return training.fit(spoilt, block, student, *rest)

    monkeypatch.setattr("pruning.stages.training.reconstruct.reconstruction.fit", fit)
    result, record = reconstruct(HALVES, halved, inputs, tmp_path)
    assert not record.rolled_back
    assert record.after < record.before
    assert "the attention of block 2 is rolled back" in caplog.text
    for name in halved.source.names():
        same = torch.equal(halved.source.tensor(name), result.source.tensor(name))
        assert same == ("mlp" not in name and "post_attention" not in name), name


def test_halves_that_worsen_the_block_are_rolled_back_together(
    halved: StageModel,
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fit(stage: Reconstruct, block: Block, student: Student, *rest: Any) -> Fitted:
        if any("mlp" in name for name in student.parameters):
            return Fitted([(0, 9.0)], student.weights())
        for parameter in student.parameters.values():
            parameter.data.mul_(2)
        return Fitted([(0, 9.0), (1, 8.0)], student.weights())

    monkeypatch.setattr("pruning.stages.training.reconstruct.reconstruction.fit", fit)
    result, record = reconstruct(HALVES, halved, inputs, tmp_path)
    assert "block 2 is rolled back" in caplog.text
    assert record.rolled_back
    assert record.after == record.before
    assert same_weights(halved, result)
    own, kept = (load(model, torch.float32)(inputs.calibration[0]).logits for model in (halved, result))
    assert torch.equal(own, kept)


def test_the_best_step_is_kept(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    def fit(stage: Reconstruct, block: Block, student: Student, *rest: Any) -> Fitted:
        fitted = training.fit(stage, block, student, *rest)
        student.put(fitted.weights)
        again = training.score(block, range(9, 12), stage.batch)
        checked.append(again == fitted.best[1] == min(score for _, score in fitted.scores))
        return fitted

    monkeypatch.setattr("pruning.stages.training.reconstruct.reconstruction.fit", fit)
    reconstruct(msgspec.structs.replace(STAGE, learning_rate=1e-2), halved, inputs, tmp_path)
    assert checked == [True] * 3


def test_an_unpruned_model_is_already_at_the_target(inputs: Inputs, tmp_path: Path) -> None:
    base = StageModel(inputs.base.config, inputs.base)
    result, record = reconstruct(STAGE, base, inputs, tmp_path)
    assert record.before == record.after == 0
    assert record.rolled_back
    assert same_weights(base, result)


def test_a_block_that_gets_worse_is_rolled_back_early_and_says_so(
    halved: StageModel, inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = msgspec.structs.replace(STAGE, steps=40, learning_rate=1.0)
    result, record = reconstruct(stage, halved, inputs, tmp_path)
    assert record.rolled_back
    assert record.after == record.before
    assert same_weights(halved, result)
    assert not [shard for shard in tmp_path.rglob("block-*.safetensors") if Shards([shard]).names()]
    assert "block 2 is rolled back" in caplog.text
    assert record.tokens == training.PATIENCE * 4 * 2 * 32


@pytest.mark.parametrize("stop_at", [2, 5])
def test_stopped_in_either_half_it_ends_the_same(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    whole, expected = reconstruct(HALVES, halved, inputs, tmp_path / "whole")
    step, steps = Optimiser.step, list[int]()

    def stop(self: Optimiser, loss: torch.Tensor, number: int) -> None:
        steps.append(number)
        if len(steps) == 12 * stop_at - 5:
            raise KeyboardInterrupt
        step(self, loss, number)

    monkeypatch.setattr(Optimiser, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(HALVES, halved, inputs, tmp_path / "cut")
    result, record = reconstruct(HALVES, halved, inputs, tmp_path / "cut")
    assert len(steps) == 12 * stop_at - 5 + 12 * (6 - (stop_at - 1) // 2 * 2)
    assert same_weights(whole, result)
    assert record == expected


@pytest.mark.parametrize("when", [1, 2, 3])
def test_stopped_in_any_block_it_ends_the_same(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    whole, expected = reconstruct(STAGE, halved, inputs, tmp_path / "whole")
    original, visited = training.score, []

    def stop(*arguments: Any) -> float:
        visited.append(1)
        if len(visited) == 4 * when - 1:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(STAGE, halved, inputs, tmp_path / "cut")
    result, record = reconstruct(STAGE, halved, inputs, tmp_path / "cut")
    assert len(visited) == 4 * when - 1 + 4 * (4 - when)
    assert same_weights(whole, result)
    assert record == expected


def test_one_block_is_in_memory(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = []

    def fit(stage: Reconstruct, block: Block, student: Student, *rest: Any) -> Fitted:
        fitted = training.fit(stage, block, student, *rest)
        model = visits[0].sweep.blocks.model
        peaks.append({name.split(".")[2] for name, p in model.named_parameters() if not p.is_meta})
        return fitted

    visits: list[ReconstructBlock] = []
    build = ReconstructBlock.__init__

    def remember(self: ReconstructBlock, *arguments: Any) -> None:
        build(self, *arguments)
        visits.append(self)

    monkeypatch.setattr(ReconstructBlock, "__init__", remember)
    monkeypatch.setattr("pruning.stages.training.reconstruct.reconstruction.fit", fit)
    reconstruct(STAGE, halved, inputs, tmp_path)
    assert peaks == [{"0"}, {"1"}, {"2"}]
