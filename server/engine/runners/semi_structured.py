"""Runs 2:4 weights through CUDA's semi-structured kernels where a short measurement shows that they are faster.

They lose to dense kernels at few rows, so a layer keeps both forms of its weight and picks by the number of rows."""

import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured

from server.engine.choice import Choice

ROW_COUNTS = (1, 8, 32, 128, 512)
ALIGNMENT = (32, 64)  # rows and columns of a weight: multiples that both of CUDA's libraries accept at 16 bits
GAIN = 1.05  # smaller speed-ups are noise


class Kernels(NamedTuple):
    """Compresses a 2:4 weight, and measures the seconds of `x @ weight.T` for x [rows, columns]."""

    compress: Callable[[Tensor], Tensor]
    seconds: Callable[[Tensor, int], float]


class SemiStructuredLinear(nn.Module):
    """A linear layer that uses its 2:4 form from `threshold` rows of input on, and its dense form below."""

    def __init__(self, linear: nn.Linear, sparse: Tensor, threshold: int) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.sparse = sparse
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        """[..., columns] -> [..., rows of the weight]."""
        rows = x.numel() // x.shape[-1]
        return functional.linear(x, self.sparse if rows >= self.threshold else self.weight, self.bias)


def is_two_of_four(weight: Tensor) -> bool:
    """Whether each group of four columns has at most two nonzero values."""
    return weight.shape[-1] % 4 == 0 and int(weight.detach().reshape(-1, 4).count_nonzero(dim=1).max()) <= 2


@torch.inference_mode()
def install(model: nn.Module, kernels: Kernels | None = None) -> tuple[Choice, ...]:
    """Replace the 2:4 layers for which the sparse kernels are faster; returns the choice made for each weight shape."""
    shapes = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_two_of_four(module.weight):
            shapes[tuple(module.weight.shape)].append(name)
    if not shapes:
        return ()
    device = next(model.parameters()).device
    if reason := _unavailable(device) if kernels is None else None:
        count = sum(map(len, shapes.values()))
        return (Choice("2:4 layers", "dense", f"{count} layers are 2:4, but {reason}"),)
    kernels = kernels or Kernels(_compress, _seconds)
    return tuple(_choose(model, names, kernels) for names in shapes.values())


def threshold(dense: list[float], sparse: list[float]) -> int | None:
    """The smallest of ROW_COUNTS from which on 2:4 is always faster, given seconds for each; None if never."""
    best = None
    for rows, slow, fast in reversed(list(zip(ROW_COUNTS, dense, sparse, strict=True))):
        if slow < GAIN * fast:
            break
        best = rows
    return best


def _choose(model: nn.Module, names: list[str], kernels: Kernels) -> Choice:
    """Choose for all layers of one shape by measuring the first."""
    first = model.get_submodule(names[0]).weight
    assert isinstance(first, Tensor)
    rows, columns = first.shape
    subject = f"{len(names)} layers of {rows}x{columns}, 2:4"
    if rows % ALIGNMENT[0] or columns % ALIGNMENT[1]:
        reason = f"the kernel needs multiples of {ALIGNMENT[0]} rows and {ALIGNMENT[1]} columns"
        return Choice(subject, "dense", reason)
    compressed = kernels.compress(first)
    dense = [kernels.seconds(first, count) for count in ROW_COUNTS]
    sparse = [kernels.seconds(compressed, count) for count in ROW_COUNTS]
    measured = ", ".join(
        f"{count}: {slow / fast:.2f}" for count, slow, fast in zip(ROW_COUNTS, dense, sparse, strict=True)
    )
    least = threshold(dense, sparse)
    if least is None:
        return Choice(subject, "dense", f"2:4 is not faster; speed against dense by rows: {measured}")
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, SemiStructuredLinear(linear, kernels.compress(linear.weight), least))
    reason = f"faster from {least} rows on, dense below; speed against dense by rows: {measured}"
    return Choice(subject, "semi-structured", reason)


def _unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run there, or None if they can."""
    if device.type != "cuda":
        return f"semi-structured kernels need CUDA and this is {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"semi-structured kernels need compute capability 8.0, this has {major}.{minor}"


def _compress(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # warns that its interface may change
        compressed: Tensor = to_sparse_semi_structured(weight.detach())
    return compressed


def _seconds(weight: Tensor, rows: int, repeats: int = 20) -> float:
    """Mean seconds of a product on CUDA over `repeats`, after a warm-up."""
    x = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    for _ in range(3):
        functional.linear(x, weight)
    torch.cuda.synchronize(weight.device)
    start = time.perf_counter()
    for _ in range(repeats):
        functional.linear(x, weight)
    torch.cuda.synchronize(weight.device)
    return (time.perf_counter() - start) / repeats
