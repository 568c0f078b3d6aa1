"""The loss of distillation and its gradient in one go, a few rows at a time.

A vocabulary is wide: float32 copies of all logits of a batch are hundreds of megabytes each, and writing and reading
them costs more than the exponentials do.
"""

from typing import Any

import torch
from torch import Tensor

ROWS = 32
"""Tokens whose logits are in float32 at once, so that they stay in the processor's cache."""


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over tokens of KL(teacher || student), in nats, from logits [batch, tokens, vocabulary].

    Both are divided by `temperature`, and the result is multiplied by its square, so that gradients keep their size.
    """
    loss: Tensor = _Divergence.apply(student.flatten(0, 1), teacher.flatten(0, 1), temperature)  # type: ignore[no-untyped-call]
    return loss


class _Divergence(torch.autograd.Function):
    """T^2 KL(p || q) with p, q = softmax(logits / T), and its gradient T (q - p) by the student's logits."""

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
        return ctx.gradient.mul_(outputs[0]), None, None  # in place, as nothing else reads it


def _likelihoods(logits: Tensor, temperature: float) -> Tensor:
    """The logarithms of the predictions [tokens, vocabulary], in float32."""
    logits = logits.float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(dim=-1)
