"""The trained parameters: kept weights, or adapters whose merge keeps every zero."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.errors import RecipeError
from pruning.model.weights import WeightSource
from pruning.recipe.training import LoRA
from pruning.stages.context import StageModel
from pruning.stages.training.distil.lora import LoRAStudent
from pruning.stages.training.network import load
from pruning.stages.training.student import Student, block_linears, select_trained
from tests.pruning import tiny

CLOSE: dict[str, Any] = {"rtol": 0.006, "atol": 0, "equal_nan": True}
IDS = torch.arange(24).view(2, 12)


class Memory(WeightSource):
    """The weights of a model in memory, as a source."""

    def __init__(self, network: nn.Module) -> None:
        self._tensors = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def names(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def model(kind: str = "llama", *, pruned: bool) -> tuple[StageModel, nn.Module]:
    network = tiny.build(kind)
    if pruned:
        for module in block_linears(network).values():
            weight = module.get_parameter("weight").data
            weight.masked_fill_(torch.rand_like(weight) < 0.5, 0)
    return StageModel(network.config.to_dict(), Memory(network)), network


def disturb(student: Student, by: float) -> None:
    for parameter in student.parameters.values():
        parameter.data += torch.randn_like(parameter) * by
    student.settle()


def adapted(given: StageModel, lora: LoRA, seed: int = 0) -> LoRAStudent:
    return LoRAStudent(load(given, torch.float32), load(given, torch.float32), lora, seed)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma2", "bloom"])
def test_a_model_in_memory_is_the_model(kind: str) -> None:
    given, network = model(kind, pruned=False)
    loaded = load(given, torch.float32)
    assert torch.equal(loaded(IDS).logits, network(IDS).logits)
    assert len(list(loaded.parameters())) == len(list(network.parameters())), "tied weights are loaded once"


def test_blocks_norms_and_biases_are_trained_and_embeddings_on_request() -> None:
    network = load(model("gpt2", pruned=False)[0], torch.float32)
    trained = set(select_trained(network, embeddings=False).parameters)
    rest = {name for name, _ in network.named_parameters()} - trained
    assert rest == {"transformer.wte.weight", "transformer.wpe.weight"}
    Student(network, select_trained(network, embeddings=False))
    assert not any(network.get_parameter(name).requires_grad for name in rest)
    assert set(select_trained(network, embeddings=True).parameters) == trained | rest


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merged_adapters_give_the_logits_of_the_adapters_where_nothing_is_pruned(kind: str) -> None:
    pytest.importorskip("peft")
    given, _ = model(kind, pruned=False)
    student = adapted(given, LoRA(rank=4, alpha=8))
    start = student.network(IDS).logits
    disturb(student, 0.05)
    merged = student.scored_network()
    weights = student.weights()
    assert all(torch.equal(merged.get_parameter(name), tensor.float()) for name, tensor in weights.items())
    expected = student.network(IDS).logits
    assert (expected - start).abs().max() > 0.1
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=0.01)  # the merger is rounded to bfloat16


def test_merged_adapters_are_the_paper_s_and_keep_every_zero() -> None:
    pytest.importorskip("peft")
    given, network = model(pruned=True)
    student = adapted(given, LoRA(rank=4, alpha=8))
    disturb(student, 0.1)
    changed = student.weights()
    for name in block_linears(network):
        own = network.get_parameter(f"{name}.weight")
        A, B = (student.parameters[f"{name}.lora_{which}.default.weight"].detach() for which in "AB")  # noqa: N806
        expected = torch.where(own == 0, 0, own + 8 / 4 * B @ A)
        assert torch.equal(changed[f"{name}.weight"] == 0, own == 0)
        torch.testing.assert_close(changed[f"{name}.weight"], expected.bfloat16())
    assert "model.norm.weight" in changed
    assert "model.embed_tokens.weight" not in changed


def test_adapters_are_seeded_and_leave_the_global_seed_alone() -> None:
    pytest.importorskip("peft")
    given, _ = model(pruned=True)
    state = torch.random.get_rng_state()
    first, second, third = (adapted(given, LoRA(), seed).parameters for seed in (1, 1, 2))
    name = "model.layers.0.mlp.up_proj.lora_A.default.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], third[name])
    assert torch.equal(state, torch.random.get_rng_state())


def test_without_peft_lora_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RecipeError, match=r"run `pip install 'secateur\[lora\]'` first"):
        adapted(model(pruned=True)[0], LoRA())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_steps_accumulate_in_the_master_weights(dtype: torch.dtype) -> None:
    network = load(model(pruned=True)[0], dtype)
    student = Student(network, select_trained(network, embeddings=False))
    name = "model.layers.0.mlp.up_proj.weight"
    weight = student.network.get_parameter(name)
    before = weight.detach().clone()
    for _ in range(8):  # each less than bfloat16 resolves
        student.parameters[name].data.mul_(1.001)
        student.settle()
    torch.testing.assert_close(weight.float() / before.float(), (before / before).float() * 1.001**8, **CLOSE)
    assert weight.dtype == dtype
    assert torch.equal(weight.bfloat16(), student.weights()[name])


def test_gradients_move_master_weights_but_not_pruned_ones() -> None:
    given, network = model(pruned=True)
    trained = load(given, torch.float32)
    student = Student(trained, select_trained(trained, embeddings=False))
    for net in (network, student.network):
        net(IDS).logits.square().sum().backward()
    student.take_gradients()
    for name in student.parameters:
        own, parameter = network.get_parameter(name), student.parameters[name]
        assert own.grad is not None
        expected = own.grad if "proj" not in name else own.grad * (own != 0)
        torch.testing.assert_close(parameter.grad, expected)
        assert student.network.get_parameter(name).grad is None
