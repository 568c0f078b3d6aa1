from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.blocks import Blocks, find_blocks, is_linear, weight_of
from pruning.model.weights import WeightSource


class Tiny(nn.Module):
    """A model of three blocks that is called as a causal language model is."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.other = nn.ModuleList([nn.Linear(2, 2)])
        self.head = nn.Linear(8, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        states = self.embed(input_ids)
        for block in self.blocks:
            states = block(states)
        logits: Tensor = self.head(states)
        return logits


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = states + self.linear(states).tanh()
        return result


class Memory(WeightSource):
    """A source in memory that counts reads."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.asked: list[str] = []

    def names(self) -> list[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> Tensor:
        self.asked.append(name)
        return self.tensors[name]


def blocks_of(model: Tiny) -> tuple[Blocks, Memory]:
    source = Memory(model)
    return Blocks(on_meta(model), source), source


def on_meta(model: Tiny) -> Tiny:
    """The model without its weights; moving it unties the head."""
    model.to("meta").eval()
    model.head.weight = model.embed.weight
    return model


def in_memory(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.is_meta}


IDS = torch.arange(16).view(2, 8)


def test_the_list_with_the_most_weights_is_found() -> None:
    path, stack = find_blocks(Tiny(Plain))
    assert path == "blocks"
    assert len(stack) == 3


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ModelRefused, match="Linear holds no list of blocks"):
        find_blocks(nn.Linear(2, 2))


def test_replaying_the_blocks_equals_the_model() -> None:
    model = Tiny(Plain)
    with torch.no_grad():
        expected = model.embed(IDS)
        for block in model.blocks:
            expected = block(expected)
    blocks, _ = blocks_of(model)
    blocks.check(IDS)
    states, calls = blocks.capture(IDS)
    for index in range(len(blocks)):
        with blocks.loaded(index):
            states = blocks.run(index, states, calls[index])
    assert torch.equal(states, expected)


def test_only_one_block_is_in_memory_and_tied_weights_are_read_once() -> None:
    model = Tiny(Plain)
    blocks, source = blocks_of(model)
    with blocks.loaded(1):
        assert in_memory(model) == {"blocks.1.linear.weight", "blocks.1.linear.bias"}
    assert not in_memory(model)
    blocks.capture(IDS)
    assert not in_memory(model)
    assert source.asked.count("embed.weight") == 1
    assert "head.weight" not in source.asked


def test_changing_a_loaded_block_leaves_the_source_unchanged() -> None:
    blocks, source = blocks_of(Tiny(Plain))
    before = source.tensors["blocks.0.linear.weight"].clone()
    with blocks.loaded(0):
        weight_of(blocks.linears(0)["blocks.0.linear.weight"]).zero_()
    assert torch.equal(source.tensors["blocks.0.linear.weight"], before)


class Twice(Tiny):
    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        states = self.embed(input_ids)
        for block in [*self.blocks, *self.blocks]:
            states = block(states)
        logits: Tensor = self.head(states)
        return logits


class Random(Plain):
    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = super().forward(states) + torch.rand(())
        return result


class Peeking(Tiny):
    """Calls its blocks with an argument that depends on the tokens."""

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        states = self.embed(input_ids)
        for block in self.blocks:
            states = block(states + 0, input_ids.float().mean())
        logits: Tensor = self.head(states)
        return logits


class Shifted(Plain):
    def forward(self, states: Tensor, shift: float = 0) -> Tensor:
        result: Tensor = super().forward(states) + shift
        return result


class Listing(Plain):
    def forward(self, states: Tensor) -> Any:
        return [super().forward(states)]


class Broken(Plain):
    def forward(self, states: Tensor) -> Tensor:
        raise RuntimeError("no such thing")


DIFFERS = "blocks.0 run alone differs from the model's own forward"


@pytest.mark.parametrize(
    ("kind", "block", "sentence"),
    [
        (Twice, Plain, "does not call the blocks in blocks once each in order"),
        (Tiny, Random, DIFFERS),
        (Peeking, Shifted, DIFFERS),
        (Tiny, Listing, "its blocks return list where a hidden state was expected"),
        (Tiny, Broken, "the model's own forward fails: RuntimeError: no such thing"),
    ],
)
def test_a_model_that_cannot_be_replayed_is_refused(kind: type[Tiny], block: type[nn.Module], sentence: str) -> None:
    model = kind(block)
    blocks, _ = blocks_of(model)
    with pytest.raises(ModelRefused, match=sentence):
        blocks.check(IDS)
    assert not in_memory(model)


class Experts(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.zeros(8, 8, 8))


def test_fused_experts_are_refused_by_name() -> None:
    with pytest.raises(ModelRefused, match=r"11% of the weights of blocks\.0 are in linear layers \(not experts\)"):
        blocks_of(Tiny(Experts))


def test_a_checkpoint_that_lacks_weights_is_refused() -> None:
    model = Tiny(Plain)
    source = Memory(model)
    del source.tensors["blocks.2.linear.bias"]
    with pytest.raises(ModelRefused, match=r"lacks 1 of the model's weights, blocks\.2\.linear\.bias for instance"):
        Blocks(on_meta(model), source)


class Conv1D(nn.Module):
    """As GPT-2's: the weight is [inputs, outputs]."""

    def __init__(self) -> None:
        super().__init__()
        self.nf = 3
        self.weight = nn.Parameter(torch.zeros(2, 3))


def test_the_weight_of_a_transposed_linear_is_viewed_as_outputs_by_inputs() -> None:
    module = Conv1D()
    assert is_linear(module)
    weight_of(module)[2, 0] = 5
    assert module.weight[0, 2] == 5
    assert not is_linear(nn.Embedding(2, 2))


def test_linears_are_named_by_their_full_weight_names() -> None:
    blocks, _ = blocks_of(Tiny(Plain))
    assert list(blocks.linears(1)) == ["blocks.1.linear.weight"]
