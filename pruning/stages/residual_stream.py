"""Finds the linear layers whose outputs are added unchanged to the residual stream, without knowing the architecture.

Muting such a layer changes the block's output by exactly the layer's own output.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

NEAR = 1e-2
"""Relative tolerance of the comparison, for float32 in the presence of massive activations."""


def stream_writers(linears: Mapping[str, nn.Module], states: Tensor, run: Callable[[], Tensor]) -> tuple[str, ...]:
    """Names of the `linears` that write to the residual stream, in call order; none if anything else writes too.

    `run` returns the block's output for `states`, both [sequences, tokens, hidden].
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
    """Make `linear` output zeros within the context."""
    handle = linear.register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _noting(linears: Mapping[str, nn.Module], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Collect the output of each of `linears` in `outputs`, by name."""
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
    """Whether two tensors are equal within `NEAR`."""
    return bool((found - expected).norm() <= NEAR * expected.norm())
