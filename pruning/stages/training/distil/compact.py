"""The student of distillation in little memory: bfloat16 weights without master copies, and moments of 8 bits.

About 8 bytes a parameter: weight 2, gradient 2, moments 2, mask 1, and scales. Updates that bfloat16 cannot hold are
rounded stochastically, so that small steps still add up.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning.stages.training.student import Student, TrainedParameters

BLOCK = 256
"""Moments that share one scale."""
CHUNK = 2048 * BLOCK
"""Weights updated at once, whose moments are in float32 meanwhile."""
EPSILON = 1e-8


class CompactStudent(Student):
    """Trains the network's own bfloat16 weights."""

    def __init__(self, network: nn.Module, trained: TrainedParameters) -> None:
        self.network = network
        self._trained, self._pruned = trained
        self.parameters = dict(self._trained)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def adamw(self, learning_rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        """AdamW with moments of 8 bits."""
        return AdamW8Bit(self.groups(learning_rate), betas)

    def take_gradients(self) -> None:
        """Zero the gradients of pruned weights."""
        for name, pruned in self._pruned.items():
            if (gradient := self.parameters[name].grad) is not None:
                gradient.mul_(~pruned)

    def update(self, step: int) -> None:
        """Drop the gradients; pruned weights are zero already, as zero is never rounded."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def settle(self) -> None:
        """Zero the pruned weights."""
        for name, pruned in self._pruned.items():
            self.parameters[name].data.mul_(~pruned)


class AdamW8Bit(torch.optim.Optimizer):
    """AdamW without weight decay, with moments of 8 bits in blocks and stochastic rounding of bfloat16 weights.

    Dettmers et al., 8-bit Optimizers via Block-wise Quantization, https://arxiv.org/abs/2110.02861. Deliberate
    difference: codes are linear in the signed square root of the mean and in the fourth root of the mean square, where
    the paper has a dynamic tree. Random bits are seeded by step and parameter, so a resumed run repeats them.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas, "lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step down the gradients; parameters without one stay as they are."""
        assert closure is None, "gradients are computed before"
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(_start(parameter))
                state["step"] += 1
                _update(parameter, state, group["lr"], group["betas"], number)


def _start(parameter: nn.Parameter) -> dict[str, Tensor]:
    """Zero moments of a parameter."""
    blocks = -(-parameter.numel() // BLOCK)
    return {
        "step": torch.tensor(0),
        "mean": torch.zeros(blocks, BLOCK, dtype=torch.int8),
        "mean_scale": torch.zeros(blocks, 1),
        "square": torch.zeros(blocks, BLOCK, dtype=torch.uint8),
        "square_scale": torch.zeros(blocks, 1),
    }


def _update(
    parameter: nn.Parameter, state: Mapping[str, Tensor], rate: float, betas: tuple[float, float], number: int
) -> None:
    """Update one parameter and its moments, a chunk at a time."""
    assert parameter.grad is not None
    step = int(state["step"])
    draw = torch.Generator().manual_seed(step << 20 | number)
    weights, gradients = parameter.data.view(-1), parameter.grad.reshape(-1)
    for start in range(0, len(weights), CHUNK):
        part = weights[start : start + CHUNK]
        blocks = slice(start // BLOCK, -(-(start + len(part)) // BLOCK))
        gradient = nn.functional.pad(gradients[start : start + CHUNK].float(), (0, -len(part) % BLOCK)).view(-1, BLOCK)
        mean = decode_mean(state["mean"][blocks], state["mean_scale"][blocks]).lerp_(gradient, 1 - betas[0])
        square = decode_square(state["square"][blocks], state["square_scale"][blocks])
        square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        change = (mean / (1 - betas[0] ** step)) / ((square / (1 - betas[1] ** step)).sqrt_() + EPSILON)
        moved = part.float() - rate * change.view(-1)[: len(part)]
        part.copy_(round_randomly(moved, draw) if part.dtype == torch.bfloat16 else moved)
        for kind, (codes, scale) in {"mean": encode_mean(mean), "square": encode_square(square)}.items():
            state[kind][blocks], state[f"{kind}_scale"][blocks] = codes, scale


def encode_mean(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, int8, linear in the signed square root of `mean` [blocks, BLOCK], and the scale [blocks, 1]."""
    scale = mean.abs().amax(dim=1, keepdim=True)
    root = (mean.abs() / scale.clamp_min(torch.finfo(mean.dtype).tiny)).sqrt_()
    return (127 * root).round_().mul_(mean.sign()).to(torch.int8), scale


def decode_mean(codes: Tensor, scale: Tensor) -> Tensor:
    """The mean [blocks, BLOCK] that `encode_mean` encoded."""
    root = codes.float() / 127
    return root * root.abs() * scale


def encode_square(square: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, uint8, linear in the fourth root of `square` [blocks, BLOCK], and the scale [blocks, 1]."""
    scale = square.amax(dim=1, keepdim=True)
    root = (square / scale.clamp_min(torch.finfo(square.dtype).tiny)).sqrt_().sqrt_()
    return (255 * root).round_().to(torch.uint8), scale


def decode_square(codes: Tensor, scale: Tensor) -> Tensor:
    """The mean square [blocks, BLOCK] that `encode_square` encoded."""
    root = codes.float() / 255
    return root.square_().square_().mul_(scale)


def round_randomly(values: Tensor, draw: torch.Generator) -> Tensor:
    """`values`, float32, rounded up or down to bfloat16 so that the expectation is exact; zero stays zero."""
    noise = torch.empty(values.shape, dtype=torch.int32).random_(0, 1 << 16, generator=draw)
    return (values.view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32).bfloat16()
