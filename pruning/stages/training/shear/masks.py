"""Hard-concrete masks and their constraint to a target size, as functions of tensors alone.

Louizos et al., Learning Sparse Neural Networks through L0 Regularization, https://arxiv.org/abs/1712.01312, section 2,
as used for whole structures by Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, section 2.1.
"""

from math import log

import torch
from torch import Tensor

BETA = 2 / 3
"""The temperature."""
LOWEST, HIGHEST = -0.1, 1.1
"""What the concrete variable is stretched to before it is clipped to 0 and 1."""
SHARPNESS = 0.8
"""Sheared LLaMA's factor in its deterministic masks."""


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Masks in [0, 1], exactly 0 or 1 with positive probability, from numbers `uniform` in (0, 1) of the same shape."""
    concrete = torch.sigmoid((uniform.log() - (-uniform).log1p() + log_alpha) / BETA)
    return (concrete * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)


def probability(log_alpha: Tensor) -> Tensor:
    """The probability that a mask is not 0; their sum is the size that is to be expected."""
    return torch.sigmoid(log_alpha - BETA * log(-LOWEST / HIGHEST))


def decide(log_alpha: Tensor, size: int) -> Tensor:
    """The masks [n] without chance: exactly `size` of them stay, at their own values; of equals the higher index."""
    values = torch.sigmoid(log_alpha / BETA * SHARPNESS)
    lowest = values.argsort(stable=True)[: len(values) - size]
    return values.index_fill(0, lowest, 0)


def penalty(size: Tensor, target: Tensor | float, linear: Tensor, quadratic: Tensor) -> Tensor:
    """The Lagrangian of one constraint, linear (s - t) + quadratic (s - t)^2: masks go down it, multipliers up."""
    excess = size - target
    return linear * excess + quadratic * excess.square()


def target_at(step: int, warmup: int, start: float, target: float) -> float:
    """The target of one step: from `start` along a line, reached after `warmup` steps."""
    return start + (target - start) * min(step / warmup, 1.0) if warmup else target
