"""The halves of a block on every architecture: their parameters, and the residual stream between them."""

import pytest
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.blocks import Blocks, Call
from pruning.model.weights import InMemory
from pruning.stages.residual_stream import muted
from pruning.stages.training.reconstruct.halves import Halves, halves_of
from tests.pruning import tiny

ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
IDS = torch.arange(24).view(2, 12)


def first_block(kind: str) -> tuple[nn.Module, Tensor, Call]:
    network = tiny.build(kind).requires_grad_(False)
    blocks = Blocks(network, InMemory(dict(network.named_parameters())))
    states, calls = blocks.capture(IDS)
    return network.get_submodule(f"{blocks.path}.0"), states, calls[0]


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_the_first_half_is_the_attention_and_the_muted_block_gives_the_stream_after_it(kind: str) -> None:
    block, states, call = first_block(kind)
    halves = halves_of(block, states, call)
    names = [name for name, _ in block.named_parameters()]
    assert sorted(halves.first + halves.second) == sorted(names)
    assert list(halves.first) == sorted(halves.first, key=names.index), "in one order in every process"
    for name in names:
        if name.rpartition(".")[0] and "norm" not in name and "ln_" not in name:
            assert (name.partition(".")[0] in ATTENTIONS) == (name in halves.first), name
    assert not any(parameter.requires_grad for parameter in block.parameters())
    attention = next(module for name, module in block.named_children() if name in ATTENTIONS)
    seen: list[Tensor] = []
    attention.register_forward_hook(lambda _, inputs, output: seen.append(output[0]))
    with muted(block.get_submodule(halves.last)):
        output = block(states.clone(), *call.args, **call.kwargs)
    state = output[0] if isinstance(output, tuple) else output
    added = block.get_submodule("post_attention_layernorm")(seen[0]) if kind == "gemma2" else seen[0]
    expected = added if kind == "bloom" else states + added  # bloom's attention adds the residual itself
    torch.testing.assert_close(state, expected)


class Mixer(nn.Module):
    """A block without an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = states + self.out(self.into(states).relu())
        return result


class Experts(nn.Module):
    """A block whose MLP ends in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(4, 4)
        self.mlp = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attention(states)
        result: Tensor = states + self.mlp[0](states) + self.mlp[1](states)
        return result


@pytest.mark.parametrize(
    ("block", "why"), [(Mixer(), "all its linear layers lead to out"), (Experts(), "mlp.1.weight is used after the")]
)
def test_a_block_without_two_halves_is_refused(block: nn.Module, why: str) -> None:
    with pytest.raises(ModelRefused, match=f'cannot be separated .{why}.*: use unit = "block"'):
        halves_of(block, torch.randn(2, 3, 4), Call((), {}))


def test_a_parameter_that_changes_nothing_is_of_the_second_half() -> None:
    block, states, call = first_block("gemma2")
    halves: Halves = halves_of(block, states, call)
    assert "post_feedforward_layernorm.weight" in halves.second
    assert "post_attention_layernorm.weight" in halves.first
