"""Tells a block's attention from its MLP without knowing the architecture.

The linear layer that is called last writes what the MLP adds to the residual stream. With that layer muted a block
gives the stream as the attention leaves it; what that depends on is the first half, all else the second.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.blocks import Call, is_linear
from pruning.stages.layerwise.stream import muted


class Halves(NamedTuple):
    """The parameters of a block by their names in it, in its order, and the linear layer that is called last."""

    first: tuple[str, ...]
    """What the stream after the attention depends on."""
    second: tuple[str, ...]
    last: str


def halves_of(block: nn.Module, states: Tensor, call: Call) -> Halves:
    """The halves of a loaded `block`, found by running it on `states` [sequences, tokens, hidden].

    Raises ModelRefused where they cannot be told apart, as where one module has parameters in both.
    """
    last = _last_linear(block, states, call)
    gradients = _gradients(block, last, states, call)
    first: set[str] = set()
    for part in dict.fromkeys(name.partition(".")[0] for name in gradients):
        found = {name: value for name, value in gradients.items() if name.partition(".")[0] == part}
        if not any(value is not None and value.any() for value in found.values()):
            continue  # not used, or used and of no effect, as a norm of zeros is
        if unused := [name for name, value in found.items() if value is None]:
            raise ModelRefused(_sentence(block, f"{unused[0]} is after the attention, and the rest of {part} before"))
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
    """The gradient of some function of the output by each parameter while `last` is muted; None: it is not used."""
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
    """The refusal."""
    return f'attention and MLP of {type(block).__name__} cannot be told apart ({why}): use unit = "block"'
