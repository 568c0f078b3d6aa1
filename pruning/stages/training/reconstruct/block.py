"""Trains one block towards target states, and keeps the weights that score best on held-out sequences.

The error is relative to each token's own state, so tokens with massive activations do not dominate.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pruning.model.blocks import Call
from pruning.recipe.training import Reconstruct
from pruning.stages.training.network import Precision
from pruning.stages.training.optimiser import Optimiser
from pruning.stages.training.student import Student

PATIENCE = 3
"""Consecutive scores without improvement that end a block's training."""


class Block(NamedTuple):
    """A loaded block, the states [sequences, tokens, hidden] before it, and the target states after it."""

    module: nn.Module
    before: Tensor
    target: Tensor
    calls: Mapping[int, Call]
    """Arguments of the module's forward, by the number of sequences."""

    def error(self, rows: Sequence[int]) -> Tensor:
        """The relative error on the sequences `rows`."""
        call = self.calls[len(rows)]
        output = self.module(self.before[list(rows)], *call.args, **call.kwargs)
        return relative_error(output[0] if isinstance(output, tuple) else output, self.target[list(rows)])


class Fitted(NamedTuple):
    """The (step, held-out error) pairs from step 0 on, and the weights of the step with the lowest error."""

    scores: list[tuple[int, float]]
    weights: dict[str, Tensor]

    @property
    def best(self) -> tuple[int, float]:
        """The step with the lowest error and that error; the earliest of equals."""
        return min(self.scores, key=lambda entry: entry[1])


def fit(stage: Reconstruct, block: Block, student: Student, precision: Precision, seed: str) -> Fitted:
    """Train the parameters in `student` on all but the last `stage.held_out` sequences of `block`."""
    training, held_out = range(len(block.before) - stage.held_out), range(len(block.before))[-stage.held_out :]
    optimiser = Optimiser(student, stage.learning_rate, stage.steps, stage.warmup)
    order = Random(seed)
    fitted = Fitted([(0, score(block, held_out, stage.batch))], student.weights())
    for step in range(1, stage.steps + 1):
        with precision.context():
            error = block.error(order.sample(training, stage.batch))
        optimiser.step(error, step)
        if step % stage.interval == 0 or step == stage.steps:
            scores = [*fitted.scores, (step, score(block, held_out, stage.batch))]
            better = scores[-1][1] < fitted.best[1]
            fitted = Fitted(scores, student.weights() if better else fitted.weights)
            if len(scores) - 1 - scores.index(fitted.best) >= PATIENCE:
                break
    return fitted


@torch.no_grad()
def score(block: Block, rows: Sequence[int], batch: int) -> float:
    """The relative error on `rows`, float32, with the weights that would be stored."""
    total = 0.0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        total += block.error(part).item() * len(part)
    return total / len(rows)


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    """The mean over tokens of |output - target|^2 / |target|^2, both [..., tokens, hidden]."""
    squares = target.square().sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((output - target).square().sum(dim=-1) / squares).mean()
