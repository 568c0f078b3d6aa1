"""Finds the linear layers whose outputs are added to the residual stream as they are, without knowing the architecture.

Such a layer, muted, takes from the block's output just what it put out itself.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

NEAR = 1e-2
"""What may differ, relative to what is compared: float32 beside the huge states of some tokens."""


def writers(linears: Mapping[str, nn.Module], states: Tensor, run: Callable[[], Tensor]) -> tuple[str, ...]:
    """The `linears` that write to the stream, in the order of their calls; none where anything else writes to it too.

    `run` gives what their block makes of `states` [sequences, tokens, hidden].
    """
    outputs: dict[str, Tensor] = {}
    with _noting(linears, outputs):
        rest = run()
    found: list[str] = []
    with ExitStack() as silence:
        for name, output in reversed(outputs.items()):
            if output.numel() != states.numel():
                continue
            with muted(linears[name]):
                without = run()
            if _near(rest - without, output.view_as(rest)):
                rest = without
                found.insert(0, name)
                silence.enter_context(muted(linears[name]))
    return tuple(found) if _near(rest, states) else ()


@contextmanager
def muted(linear: nn.Module) -> Iterator[None]:
    """Have `linear` put out zeros for as long as the context lasts."""
    handle = linear.register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _noting(linears: Mapping[str, nn.Module], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Put what each of `linears` gives into `outputs`."""
    handles = [
        linear.register_forward_hook(lambda _, inputs, output, name=name: outputs.update({name: output}))
        for name, linear in linears.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _near(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    return bool((found - expected).norm() <= NEAR * expected.norm())
