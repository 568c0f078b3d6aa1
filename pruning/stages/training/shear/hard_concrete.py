"""Hard-concrete masks, and their Lagrangian constraint to a target size, as pure functions of tensors.

Louizos et al., Learning Sparse Neural Networks through L0 Regularization, https://arxiv.org/abs/1712.01312, section 2,
applied to whole structures by Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, section 2.1.
"""

from math import log

import torch
from torch import Tensor

BETA = 2 / 3
"""Temperature of the concrete distribution."""
LOWEST, HIGHEST = -0.1, 1.1
"""The concrete variable is stretched to this interval, then clipped to [0, 1]."""
SHARPNESS = 0.8
"""Sheared LLaMA's factor in its deterministic masks."""


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Masks in [0, 1], of which some are exactly 0 or 1, from `uniform` in (0, 1) of the shape of `log_alpha`."""
    concrete = torch.sigmoid((uniform.log() - (-uniform).log1p() + log_alpha) / BETA)
    return (concrete * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)


def probability(log_alpha: Tensor) -> Tensor:
    """The probability that each mask is not 0; the sum is the expected size."""
    return torch.sigmoid(log_alpha - BETA * log(-LOWEST / HIGHEST))


def decide(log_alpha: Tensor, size: int) -> Tensor:
    """Deterministic masks [n] of which the `size` largest keep their value and the others are 0; ties: higher index."""
    values = torch.sigmoid(log_alpha / BETA * SHARPNESS)
    lowest = values.argsort(stable=True)[: len(values) - size]
    return values.index_fill(0, lowest, 0)


def penalty(size: Tensor, target: Tensor | float, linear: Tensor, quadratic: Tensor) -> Tensor:
    """The Lagrangian linear (s - t) + quadratic (s - t)^2 of a constraint; masks descend on it, multipliers ascend."""
    excess = size - target
    return linear * excess + quadratic * excess.square()


def target_at(step: int, warmup: int, start: float, target: float) -> float:
    """The target at `step`: linear from `start` to `target` over `warmup` steps."""
    return start + (target - start) * min(step / warmup, 1.0) if warmup else target
