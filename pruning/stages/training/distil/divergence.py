"""The distillation loss and its gradient in one pass, a few rows at a time.

Float32 copies of a batch's logits take hundreds of megabytes each; writing and reading them costs more than the
exponentials.
"""

from typing import Any

import torch
from torch import Tensor

ROWS = 32
"""Tokens whose logits are in float32 at once; few enough for the CPU's cache."""


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean over tokens of KL(teacher || student), nats, from logits [batch, tokens, vocabulary].

    Both are divided by `temperature` T, and the result is multiplied by T^2, which preserves the gradients' scale.
    """
    loss: Tensor = _Divergence.apply(student.flatten(0, 1), teacher.flatten(0, 1), temperature)  # type: ignore[no-untyped-call]
    return loss


class _Divergence(torch.autograd.Function):
    """T^2 KL(p || q) with p, q = softmax(logits / T), and its gradient T (q - p) for the student's logits."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=student.device)
        ctx.gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        for start in range(0, len(student), ROWS):
            rows = slice(start, start + ROWS)
            given, expected = (_likelihoods(logits[rows], temperature) for logits in (student, teacher))
            likely = expected.exp()
            total += (expected.sub_(given).mul_(likely)).sum()
            if ctx.gradient is not None:
                ctx.gradient[rows] = given.exp_().sub_(likely).mul_(temperature / len(student))
        return (total * temperature**2 / len(student)).float()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient.mul_(outputs[0]), None, None  # in place: nothing else reads it


def _likelihoods(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [tokens, vocabulary], float32."""
    logits = logits.float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(dim=-1)
