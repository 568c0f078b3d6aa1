"""AdamW with warm-up and cosine decay, under which pruned weights stay exactly zero."""

from math import ceil, cos, pi

import torch

from pruning.model.weights import WeightSource
from pruning.stages.team import ALONE, Team
from pruning.stages.training.student import Student

FLOOR = 0.1
"""The final learning rate, as a fraction of the peak."""
CLIP = 1.0
"""Gradients are clipped to this norm."""
BETAS = (0.9, 0.95)


class Optimiser:
    """AdamW without weight decay over the parameters of `student`; linear warm-up, then cosine decay."""

    def __init__(self, student: Student, learning_rate: float, steps: int, warmup: float, team: Team = ALONE) -> None:
        self._student, self._team = student, team
        self._steps, self._warmup = steps, warmup
        self.adam = student.adamw(learning_rate, BETAS)
        self._highest = [group["lr"] for group in self.adam.param_groups]

    def step(self, loss: torch.Tensor, step: int) -> None:
        """Take step `step` of 1 to `steps` down the gradient of `loss`; pruned weights and their moments stay zero.

        The gradient is averaged over the team, whose processes each pass the loss of their share of the batch.
        """
        for group, highest in zip(self.adam.param_groups, self._highest, strict=True):
            group["lr"] = highest * rate(step, self._steps, self._warmup)
        torch.autograd.backward(loss)
        self._student.take_gradients()
        self._student.combine_gradients(self._team, CLIP)
        self.adam.step()
        self._student.update(step)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors that later steps depend on, by "kind/name"."""
        kept = self._student.tensors()
        for name, parameter in self._student.parameters.items():
            kept |= {f"{kind}/{name}": value for kind, value in self.adam.state[parameter].items()}
        return kept

    def restore(self, kept: WeightSource) -> None:
        """Resume from the tensors that `tensors` returned."""
        own = self._student.tensors()
        for key in kept.names():
            kind, _, name = key.partition("/")
            if key in own:
                own[key].copy_(kept.tensor(key))
            else:
                parameter = self._student.parameters[name]
                self.adam.state[parameter][kind] = kept.tensor(key).to(parameter.device, copy=True)
        self._student.settle()


def rate(step: int, steps: int, warmup: float) -> float:
    """The learning rate of step 1 to `steps` as a fraction of the peak: linear warm-up, then cosine decay to FLOOR."""
    rising = ceil(warmup * steps)
    if step <= rising:
        return step / rising
    return FLOOR + (1 - FLOOR) * (1 + cos(pi * (step - rising) / (steps - rising))) / 2
