"""Distillation in little memory: the optimiser against torch's AdamW, stochastic rounding, and resuming."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from pruning.commands.__main__ import main
from pruning.recipe.training import Distill, Quantise
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs
from pruning.stages.training import run
from pruning.stages.training.data import draw_training_data
from pruning.stages.training.distil import distillation
from pruning.stages.training.distil.compact import (
    BLOCK,
    AdamW8Bit,
    CompactStudent,
    decode_mean,
    decode_square,
    encode_mean,
    encode_square,
    round_randomly,
)
from pruning.stages.training.network import Precision, checkpoint_blocks, load, load_mapped, logits
from pruning.stages.training.optimiser import Optimiser
from pruning.stages.training.student import TrainedParameters
from server.artifact.checkpoint.reader import Artifact
from tests.pruning.stages.training.conftest import stopped_at
from tests.pruning.tiny import after_last_block

STAGE = """[[stages]]
kind = "layerwise"
technique = {{ name = "sparsegpt", sparsity = "2:4" }}
[[stages]]
kind = "distill"
tokens = 1024
length = 32
interval = 4
held_out = 4
learning_rate = 1e-3
{more}
"""


def test_moments_of_8_bits_are_near_and_keep_small_ones() -> None:
    draw = torch.Generator().manual_seed(0)
    mean = torch.randn(3, BLOCK, generator=draw) * torch.tensor([[1.0], [1e-6], [0.0]])
    square = mean.square() * torch.rand(3, BLOCK, generator=draw)
    found, root = decode_mean(*encode_mean(mean)), decode_square(*encode_square(square)).sqrt()
    scale = mean.abs().amax(dim=1, keepdim=True)
    assert ((found - mean).abs() <= 0.01 * scale).all()
    large = mean.abs() > 0.01 * scale
    assert ((found - mean).abs()[large] <= 0.1 * mean.abs()[large]).all()
    big = square.sqrt() > 0.01 * scale
    assert ((root - square.sqrt()).abs()[big] <= 0.05 * square.sqrt()[big]).all()
    assert found[2].eq(0).all()
    assert root[2].eq(0).all()


def test_rounding_is_right_on_average_and_leaves_zero_and_exact_values() -> None:
    values = torch.tensor([0.0, 1.0, 1.001, -3.01, 1e-20]).repeat(4096, 1)
    found = round_randomly(values, torch.Generator().manual_seed(0))
    assert found.dtype == torch.bfloat16
    assert found[:, :2].eq(values[:, :2]).all()
    torch.testing.assert_close(found.float().mean(dim=0), values[0], rtol=3e-4, atol=0)
    nearest = values[0].bfloat16().float()
    step = nearest.abs() * 2**-7
    assert ((found.float() - values).abs() <= step).all()


@pytest.mark.parametrize("shape", [(40, 30), (513,), (3, BLOCK)])
def test_float32_weights_follow_torchs_adamw(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    start, target = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    small = AdamW8Bit([{"params": [ours], "lr": 0.05}], (0.9, 0.95))
    whole = torch.optim.AdamW([theirs], lr=0.05, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(30):
        for parameter, optimiser in ((ours, small), (theirs, whole)):
            parameter.grad = None
            noise = torch.randn(shape, generator=draw.manual_seed(7)) * 0.1
            (parameter - target + noise).square().sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    moved = float((theirs - start).detach().norm())
    assert float((ours - theirs).detach().norm()) < 0.05 * moved


def test_pruned_weights_stay_zero_and_small_steps_add_up_in_bfloat16() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False).bfloat16()
    pruned = torch.rand(64, 64) < 0.5
    layer.weight.data.fill_(1).masked_fill_(pruned, 0)
    student = CompactStudent(layer, TrainedParameters(dict(layer.named_parameters()), {"weight": pruned}))
    optimiser = Optimiser(student, learning_rate=1e-4, steps=200, warmup=0)  # bfloat16 resolves 4e-3 below 1
    for step in range(1, 101):
        optimiser.step(layer(torch.ones(1, 64, dtype=torch.bfloat16)).float().sum(), step)
    moved = 1 - float(layer.weight.detach()[~pruned].float().mean())
    assert layer.weight[pruned].eq(0).all()
    assert moved == pytest.approx(100 * 1e-4 * 0.85, rel=0.15)  # the mean rate of the first half of a cosine
    assert layer.weight.dtype == torch.bfloat16


def test_checkpointed_blocks_give_the_same_gradients(halved: StageModel) -> None:
    ids, found = torch.arange(24).view(2, 12), []
    for wrap in (False, True):
        network = load(halved, torch.float32)
        if wrap:
            checkpoint_blocks(network)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        network(input_ids=ids, use_cache=False).logits.square().mean().backward()
        found.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def in_a_file(tensor: Tensor) -> bool:
    """Whether the memory of `tensor` is a mapping of a weights file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return "safetensors" in line
    return False


def test_a_mapped_base_is_the_base_without_a_copy(inputs: Inputs) -> None:
    base, precision = StageModel(inputs.base.config, inputs.base), Precision(torch.bfloat16, "")
    mapped, copied = load_mapped(base, precision), load(base, torch.bfloat16)
    ids = torch.arange(24).view(2, 12)
    assert torch.equal(logits(mapped, ids, precision), logits(copied, ids, precision))
    for network, expected in ((mapped, True), (copied, False)):
        assert in_a_file(network.get_parameter("model.layers.0.mlp.up_proj.weight")) == expected


@pytest.mark.parametrize(
    "more", ['memory = "little"', 'memory = "little"\nstates = 0.5\nembeddings = true', "states = 1"]
)
def test_a_pruned_model_comes_nearer_to_its_base(
    recipe: Callable[[str], Path], tmp_path: Path, base_cache: Path, more: str
) -> None:
    output = tmp_path / "out"
    stages = STAGE.format(more=more)
    assert main(["prune", str(recipe(stages)), "--output", str(output), "--base-cache", str(base_cache)]) == 0
    artifact = Artifact.open(output)
    recovery = artifact.lineage.steps[1].recovery
    assert recovery is not None
    assert recovery.after < recovery.before
    assert not recovery.rolled_back
    for name in artifact.lineage.steps[0].sparsity:
        assert float(artifact.tensor(name).eq(0).float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("memory", ["plenty", "little"])
def test_the_loss_is_the_divergence_and_the_distance_of_states(
    halved: StageModel,
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: Literal["plenty", "little"],
) -> None:
    stage = Distill(tokens=4 * 16, length=16, held_out=2, states=0.5, memory=memory, learning_rate=1e-9)
    losses: list[float] = []
    step = Optimiser.step

    def see(self: Optimiser, loss: Tensor, number: int) -> None:
        losses.append(float(loss.detach()))
        step(self, loss, number)

    monkeypatch.setattr(Optimiser, "step", see)
    distillation.apply(stage, halved, StageContext(inputs, tmp_path))
    ids = draw_training_data(stage, inputs).batch(1, 4)
    base, pruned = (load(model, torch.float32) for model in (StageModel(inputs.base.config, inputs.base), halved))
    wanted, found = (net(input_ids=ids, output_hidden_states=True) for net in (base, pruned))
    p, q = (output.logits.log_softmax(dim=-1) for output in (wanted, found))
    expected = float((p.exp() * (p - q)).sum(dim=-1).mean())
    last = [after_last_block(net, "model.layers", ids) for net in (base, pruned)]  # transformers gives it normed
    pairs = [*zip(wanted.hidden_states[1:-1], found.hidden_states[1:-1], strict=True), (last[0], last[1])]
    apart = [((b - a).square().sum(dim=-1) / a.square().sum(dim=-1)).mean() for a, b in pairs]
    expected += 0.5 * float(torch.stack(apart).mean())
    assert losses == [pytest.approx(expected, rel=0.03)]  # computed in bfloat16


@pytest.mark.parametrize(("memory", "times"), [("plenty", 1), ("little", 0)])
def test_freed_memory_is_kept_unless_memory_is_little(
    halved: StageModel,
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: Literal["plenty", "little"],
    times: int,
) -> None:
    kept: list[None] = []

    def keep() -> AbstractContextManager[None]:
        kept.append(None)
        return nullcontext()

    monkeypatch.setattr(run, "kept_freed_memory", keep)
    distillation.apply(
        Distill(tokens=16, length=16, batch=1, held_out=1, memory=memory), halved, StageContext(inputs, tmp_path)
    )
    assert len(kept) == times


def test_killed_it_ends_with_the_identical_result(
    halved: StageModel, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Distill(tokens=6 * 4 * 16, length=16, interval=2, held_out=2, learning_rate=1e-3, memory="little")

    def weights(folder: str) -> dict[str, Tensor]:
        model, _ = distillation.apply(stage, halved, StageContext(inputs, tmp_path / folder))
        return {name: model.source.tensor(name) for name in model.source.names()}

    whole = weights("whole")
    with monkeypatch.context() as patch:
        stopped_at(patch, distillation.Distillation, 4)
        with pytest.raises(KeyboardInterrupt):
            weights("cut")
    again = weights("cut")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_states_of_another_shape_are_refused(
    recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = '[[stages]]\nkind = "depth"\nremove = 1\n' + STAGE.format(more="states = 1")
    assert main(["prune", str(recipe(stages)), "--output", str(tmp_path / "out")]) == 2
    assert "states compares the model's 2 blocks of width 64 with the base's 3 of width 64" in capsys.readouterr().err


def test_little_memory_excludes_what_needs_master_weights() -> None:
    with pytest.raises(ValueError, match="leave out lora and quantise"):
        Distill(tokens=1, memory="little", quantise=Quantise())
