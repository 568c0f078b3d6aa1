"""Splits a block's parameters into attention and MLP without knowing the architecture.

The linear layer called last writes the MLP's output to the residual stream. With that layer muted, the block returns
the stream after the attention; the parameters this depends on are the first half, all others the second.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.blocks import Call, is_linear
from pruning.stages.residual_stream import muted


class Halves(NamedTuple):
    """The parameters of both halves by name within the block, in its order, and the linear layer called last."""

    first: tuple[str, ...]
    """Parameters that the stream after the attention depends on."""
    second: tuple[str, ...]
    last: str


def halves_of(block: nn.Module, states: Tensor, call: Call) -> Halves:
    """The halves of a loaded `block`, found by running it on `states` [sequences, tokens, hidden].

    Raises ModelRefused if they cannot be separated, for instance if one module has parameters in both.
    """
    last = _last_linear(block, states, call)
    gradients = _gradients(block, last, states, call)
    first: set[str] = set()
    for part in dict.fromkeys(name.partition(".")[0] for name in gradients):
        found = {name: value for name, value in gradients.items() if name.partition(".")[0] == part}
        if not any(value is not None and value.any() for value in found.values()):
            continue  # unused, or without effect, as a norm whose weight is zero
        if unused := [name for name, value in found.items() if value is None]:
            raise ModelRefused(
                _sentence(block, f"{unused[0]} is used after the attention, the rest of {part} before it")
            )
        first |= found.keys()
    if not any(f"{name}.weight" in first for name, module in block.named_modules() if is_linear(module)):
        raise ModelRefused(_sentence(block, f"all its linear layers lead to {last}"))
    before, after = (tuple(name for name in gradients if (name in first) == which) for which in (True, False))
    return Halves(before, after, last)


def _last_linear(block: nn.Module, states: Tensor, call: Call) -> str:
    """The name of the linear layer that a forward calls last."""
    order: list[str] = []
    linears = {name: module for name, module in block.named_modules() if is_linear(module)}
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name)) for name, module in linears.items()
    ]
    try:
        with torch.no_grad():
            block(states.clone(), *call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return order[-1]


def _gradients(block: nn.Module, last: str, states: Tensor, call: Call) -> dict[str, Tensor | None]:
    """The gradient of a random projection of the output with `last` muted, by parameter; None if unused."""
    named = dict(block.named_parameters())
    block.requires_grad_(True)
    try:
        with muted(block.get_submodule(last)), torch.enable_grad():
            output = block(states.clone(), *call.args, **call.kwargs)
            state = output[0] if isinstance(output, tuple) else output
            noise = torch.randn(state.shape, generator=torch.Generator().manual_seed(0))
            if not state.requires_grad:
                return dict.fromkeys(named)
            found = torch.autograd.grad((state * noise).sum(), list(named.values()), allow_unused=True)
    finally:
        block.requires_grad_(False)
    return dict(zip(named, found, strict=True))


def _sentence(block: nn.Module, why: str) -> str:
    """The message of the refusal."""
    return f'attention and MLP of {type(block).__name__} cannot be separated ({why}): use unit = "block"'
