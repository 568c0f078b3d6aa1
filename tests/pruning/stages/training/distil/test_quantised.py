"""Quantisation-aware distillation: gradients straight through slow rounding, scales, zeros, and the artifact."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from pruning.commands.__main__ import main
from pruning.errors import RecipeError
from pruning.model.weights import Unrounded, WeightSource
from pruning.recipe.options import Round
from pruning.recipe.recipe import read
from pruning.recipe.training import Distill, Quantise
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs
from pruning.stages.layerwise import round_to_nearest
from pruning.stages.training.data import draw_training_data
from pruning.stages.training.distil.distillation import Distillation, Task, apply, build
from pruning.stages.training.distil.quantised import REFIT, QuantisedStudent
from pruning.stages.training.network import Precision, load
from pruning.techniques.mathematics.rounding import refit_scales
from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.quantised import pack_quantised, unpack_quantised
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny
from tests.pruning.stages.training.conftest import Halved
from tests.reference import slow_rounding

UP = "model.layers.1.mlp.up_proj.weight"
IDS = torch.arange(24).view(2, 12)
STAGE = Distill(
    tokens=512,
    length=32,
    batch=2,
    interval=2,
    held_out=6,
    learning_rate=2e-3,
    quantise=Quantise(bits=3, group=32),
)  # eight steps


def slowly_rounded(weight: Tensor, bits: int, group: int, scales: Tensor | None = None) -> Tensor:
    """`weight` [rows, columns] by the definition, one group at a time."""
    result = torch.zeros_like(weight)
    for i, row in enumerate(weight.tolist()):
        for start in range(0, len(row), group):
            part = row[start : start + group]
            own = slow_rounding.scale_of(part, [1.0] * len(part), bits)
            scale = own if scales is None else scales[i, start // group].item()
            codes: Sequence[int] = [slow_rounding.code(value, scale, bits) for value in part]
            result[i, start : start + group] = torch.tensor([code * scale for code in codes])
    return result.bfloat16().float()


def student(
    model: StageModel, inputs: Inputs, stage: Distill = STAGE, zeros: WeightSource | None = None
) -> QuantisedStudent:
    built = build(
        Task(stage, model, model, draw_training_data(stage, inputs), zeros or model.source),
        Precision(torch.float32, ""),
    )
    assert isinstance(built, QuantisedStudent)
    return built


def test_gradients_go_straight_through_and_leave_pruned_weights_alone(halved: StageModel, inputs: Inputs) -> None:
    rounded = student(halved, inputs)
    plain = load(halved, torch.float32).requires_grad_(True)
    for name, parameter in plain.named_parameters():
        if "_proj" in name:
            parameter.data = slowly_rounded(parameter.data, 3, 32)
            assert torch.equal(rounded.network.get_parameter(name), parameter), name
    for network in (plain, rounded.network):
        network(IDS).logits.square().sum().backward()
    rounded.take_gradients()
    for name, parameter in rounded.parameters.items():
        gradient = plain.get_parameter(name).grad
        assert gradient is not None
        expected = gradient * (halved.source.tensor(name) != 0) if "_proj" in name else gradient
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected)


def test_scales_follow_the_weights_every_few_steps(halved: StageModel, inputs: Inputs) -> None:
    rounded = student(halved, inputs)
    before, weight = rounded.weights()[f"{UP}.scales"].float(), rounded.parameters[UP].data
    weight.mul_(1.1)
    rounded.update(REFIT - 1)
    assert torch.equal(rounded.weights()[f"{UP}.scales"].float(), before)
    assert torch.equal(rounded.weights()[UP].float(), slowly_rounded(weight, 3, 32, before))
    rounded.update(REFIT)
    part = weight[5, 32:64].tolist()
    codes = [slow_rounding.code(value, before[5, 1].item(), 3) for value in part]
    expected = sum(w * q for w, q in zip(part, codes, strict=True)) / sum(q * q for q in codes)
    after = rounded.weights()[f"{UP}.scales"].float()
    assert after[5, 1].item() == pytest.approx(expected, rel=1e-3)
    assert torch.equal(rounded.weights()[UP].float(), slowly_rounded(weight, 3, 32, after))


@pytest.fixture
def quantised(halved: StageModel, inputs: Inputs, tmp_path: Path) -> StageModel:
    """The pruned model, rounded by a stage."""
    stage = Round(bits=4, group=32, what="blocks")
    return round_to_nearest.apply(stage, halved, StageContext(inputs, tmp_path / "round"))[0]


def test_a_quantised_model_starts_unchanged_and_is_the_rollback(
    quantised: StageModel, inputs: Inputs, tmp_path: Path
) -> None:
    stage = msgspec.structs.replace(STAGE, quantise=Quantise(bits=4, group=32), learning_rate=1.0)
    plain = msgspec.structs.replace(STAGE, quantise=None)
    result, step = apply(stage, quantised, StageContext(inputs, tmp_path / "first"))
    _, other = apply(plain, quantised, StageContext(inputs, tmp_path / "second"))
    assert step.recovery is not None
    assert other.recovery is not None
    assert step.recovery.rolled_back
    assert step.recovery.before == other.recovery.before
    for name in quantised.source.names():
        assert torch.equal(result.source.tensor(name), quantised.source.tensor(name)), name
        before, after = quantised.source.scales(name), result.source.scales(name)
        assert (before is None and after is None) or torch.equal(before, after), name  # type: ignore[arg-type]


def test_a_grid_with_minimums_is_kept_and_refitted(halved: StageModel, inputs: Inputs, tmp_path: Path) -> None:
    stage = Round(bits=4, group=32, what="blocks", scheme="asymmetric")
    model = round_to_nearest.apply(stage, halved, StageContext(inputs, tmp_path / "round"))[0]
    training = msgspec.structs.replace(STAGE, quantise=Quantise(bits=4, group=32, scheme="asymmetric"))
    rounded = student(model, inputs, training)
    scales = model.source.scales(UP)
    assert scales is not None
    assert scales.dim() == 3
    assert torch.equal(rounded.weights()[f"{UP}.scales"], scales)
    assert torch.equal(rounded.weights()[UP], model.source.tensor(UP))
    rounded.parameters[UP].data.mul_(1.1)
    rounded.update(REFIT)
    weights = rounded.weights()
    fitted = refit_scales(rounded.parameters[UP].data, scales.float(), 4, 32)
    assert torch.equal(weights[f"{UP}.scales"].float(), fitted)
    assert not torch.equal(fitted, scales.float())
    layout, parts = pack_quantised(weights[UP], weights[f"{UP}.scales"])
    assert layout.asymmetric
    assert torch.equal(unpack_quantised(parts, layout), weights[UP])


def test_a_rollback_of_an_unquantised_model_is_still_quantised(
    halved: StageModel, inputs: Inputs, tmp_path: Path
) -> None:
    result, step = apply(msgspec.structs.replace(STAGE, learning_rate=1.0), halved, StageContext(inputs, tmp_path))
    assert step.recovery is not None
    assert step.recovery.rolled_back
    start = student(halved, inputs).weights()
    assert result.source.scales(UP) is not None
    assert all(torch.equal(result.source.tensor(name), start[name]) for name in start if name.endswith("_proj.weight"))


class Thinned(Halved):
    """Every other column is gone, whatever its values."""

    def tensor(self, name: str) -> Tensor:
        tensor = self._source.tensor(name).clone()
        if "_proj" in name:
            tensor[:, ::2] = 0
        return tensor


def test_zeros_from_rounding_may_change_but_pruned_ones_stay(inputs: Inputs, tmp_path: Path) -> None:
    thinned, context = StageModel(inputs.base.config, Thinned(inputs.base)), StageContext(inputs, tmp_path)
    model = round_to_nearest.apply(Round(bits=4, group=32, what="blocks"), thinned, context)[0]
    pruned, zero = thinned.source.tensor(UP) == 0, model.source.tensor(UP) == 0
    assert (zero & ~pruned).any()
    stage = msgspec.structs.replace(STAGE, quantise=Quantise(bits=4, group=32))
    for zeros, expected in ((Unrounded(model.source), pruned), (model.source, zero)):
        rounded = student(model, inputs, stage, zeros)
        for parameter in rounded.parameters.values():
            parameter.data += 1
        rounded.settle()
        assert torch.equal(rounded.weights()[UP] == 0, expected)


def test_weights_in_another_format_are_rounded_again_with_a_warning(
    quantised: StageModel, inputs: Inputs, caplog: pytest.LogCaptureFixture
) -> None:
    rounded = student(quantised, inputs)
    assert (
        "21 weights quantised to another format are rounded again, to 3 bits in groups of 32, such as model."
        in caplog.text
    )
    groups = rounded.weights()[UP].float().view(128, 2, 32)
    assert max(len(group.unique()) for row in groups for group in row) <= 8
    assert max(len(group.unique()) for row in quantised.source.tensor(UP).view(128, 2, 32) for group in row) > 8


def test_a_stopped_run_resumes_bit_for_bit(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.stages.training.distil.quantised.REFIT", 3)
    whole, expected = apply(STAGE, halved, StageContext(inputs, tmp_path / "whole"))
    train = Distillation._train

    def stop(self: Distillation, step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt
        train(self, step)

    monkeypatch.setattr(Distillation, "_train", stop)
    with pytest.raises(KeyboardInterrupt):
        apply(STAGE, halved, StageContext(inputs, tmp_path / "cut"))
    monkeypatch.setattr(Distillation, "_train", train)
    result, step = apply(STAGE, halved, StageContext(inputs, tmp_path / "cut"))
    assert step.recovery == expected.recovery
    assert step.recovery is not None
    assert not step.recovery.rolled_back
    assert step.recovery.after < 0.9 * step.recovery.before
    for name in whole.source.names():
        assert torch.equal(whole.source.tensor(name), result.source.tensor(name)), name
    for name in (n for n in whole.source.names() if "_proj" in n):
        assert torch.equal(whole.source.tensor(name)[halved.source.tensor(name) == 0].abs().sum(), torch.zeros(()))


@pytest.mark.parametrize(
    ("kind", "prune", "keep"), [("llama", "sparsity = '32:64'", 32), ("gpt2", "sparsity = 0.0", None)]
)
def test_the_artifact_has_codes_and_scales(
    recipe: Callable[[str], Path], tmp_path: Path, kind: str, prune: str, keep: int | None
) -> None:
    gptq = f"technique = {{ name = 'gptq', bits = 4, group = 32, {prune} }}\n"
    stages = f"[[stages]]\nkind = 'layerwise'\n{gptq}[[stages]]\nkind = 'round'\n[[stages]]\nkind = 'distill'\n"
    options = "tokens = 32\nlength = 32\nbatch = 1\nheld_out = 2\nquantise = { bits = 4, group = 32 }\n"
    path = recipe(stages + options)
    base = tiny.save(tmp_path / kind, kind)
    path.write_text(path.read_text().replace(path.read_text().split('"')[1], str(base)))
    assert main(["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]) == 0
    artifact = Artifact.open(tmp_path / "out")
    layouts = {name: artifact.layout(name) for name in artifact.names()}
    found = [layout for layout in layouts.values() if isinstance(layout, Quantised)]
    assert len(found) == (2 * 7 + 2 if kind == "llama" else 2 * 4 + 2)
    inside = [layout for name, layout in layouts.items() if isinstance(layout, Quantised) and layout.group == 32]
    assert {(layout.bits, layout.keep) for layout in inside} == {(4, keep)}
    assert all(layout.transposed == (kind == "gpt2") for layout in inside)


def test_lora_and_quantise_exclude_each_other(recipe: Callable[[str], Path]) -> None:
    stage = "[[stages]]\nkind = 'distill'\ntokens = 64\nlora = {}\nquantise = {}\n"
    with pytest.raises(RecipeError, match="lora keeps the weights frozen"):
        read(recipe(stage))


def test_the_weights_before_rounding_are_found_behind_stages(halved: StageModel, quantised: StageModel) -> None:
    assert torch.equal(Unrounded(quantised.source).tensor(UP), halved.source.tensor(UP))
    assert Unrounded(quantised.source).scales(UP) is None
