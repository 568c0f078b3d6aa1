"""Distils the dense base into the pruned model: AdamW on what is left, the loss is KL(base || pruned) on full logits.

Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531, section 2. Kept is the
step that scores best on texts that are never trained on; if none beats the start, the model stays as it was.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.model.weights import Unrounded, WeightSource
from pruning.progress import Progress
from pruning.recipe.options import Distill, Layerwise
from pruning.stages.context import Model, Place
from pruning.stages.training.distil.divergence import divergence
from pruning.stages.training.distil.rounded import Rounded
from pruning.stages.training.journal import State
from pruning.stages.training.network import Precision, load, logits, parameters_in_blocks
from pruning.stages.training.run import (
    LETTERS,
    Effort,
    Run,
    Setting,
    batches,
    best_model,
    best_outcome,
    identity,
    mean_over,
    recovery,
    step_of,
)
from pruning.stages.training.student import Adapted, Student, adapters, kept
from pruning.stages.training.text import Lessons, draw, refuse_scarce
from pruning.techniques import GPTQ
from server.artifact.checkpoint.lineage import Recovery, Step

MEASURE = "mean KL(base || pruned) of a held-out token's prediction, nats"


def apply(stage: Distill, model: Model, place: Place) -> tuple[Model, Step]:
    """Train `model` towards the base and keep the best step, or `model` itself where none is better."""
    task = Task(
        stage,
        model,
        Model(place.inputs.base.config, place.inputs.base),
        draw(stage, place.inputs),
        _zeros(stage, model, place),
    )
    setting = Setting.of(place)
    state = setting.journal.state(identity(setting.precision, task.lessons))
    if state.step < stage.steps:
        state = Distillation(task, setting).run(state)
    reached = record(task, setting.precision, state)
    if stage.quantise or not reached.rolled_back:  # what it is rolled back to is rounded too
        model = best_model(model, setting.journal, state)
    return model, step_of(stage, model, state.seconds, reached)


def check(stage: Distill, config: dict[str, Any], place: Place) -> dict[str, Any]:
    """The configuration, which stays; raises before any work where texts or lora's package are lacking."""
    refuse_scarce(stage, place.inputs)
    if stage.lora:
        adapters()
    return config


class Task(NamedTuple):
    """Everything that decides what a run comes to, but the precision."""

    stage: Distill
    student: Model
    teacher: Model
    lessons: Lessons
    zeros: WeightSource
    """Whose zeros stay, as far as the student has them."""


class Distillation(Run):
    """One run, which needs the teacher in memory as well."""

    doing = "distilling"

    def __init__(self, task: Task, setting: Setting) -> None:
        super().__init__(task.stage, build(task, setting.precision), setting)
        self._task = task
        self._teacher = setting.load(task.teacher)
        self._held_out = setting.team.part(task.lessons.held_out)
        self._batches = batches(len(self._held_out), task.stage.batch)
        self._expected = self._predict()

    def _begin(self) -> None:
        if self._task.stage.quantise:  # what the run may be rolled back to
            self._store(0)
        super()._begin()

    def _train(self, step: int) -> None:
        ids = self._team.part(self._task.lessons.batch(step, self._task.stage.batch))
        with torch.no_grad():
            expected = logits(self._teacher, ids, self._precision)
        given = logits(self._student.network, ids, self._precision)
        self._optimiser.step(divergence(given, expected, self._task.stage.temperature), step)

    def _judge(self, network: nn.Module) -> float:
        def measure(rows: slice) -> Tensor:
            given = logits(network, self._held_out[rows], self._precision)
            return divergence(given, self._expected[rows].to(given.device))

        return mean_over(self._batches, measure, self._team)

    @torch.no_grad()
    def _predict(self) -> Tensor:
        """The teacher's logits [sequences, length, vocabulary] for this process's held-out ids, in a mapped file."""
        ids = self._held_out
        if not len(ids):  # of a process more than there are sequences
            return torch.empty(0)
        first = logits(self._teacher, ids[:1], self._precision)
        name = "expected" if self._team.leads else f"expected-{self._team.rank}"
        expected = self._journal.mapped(name, (*ids.shape, first.shape[-1]), first.dtype)
        with Progress("reading the held-out texts", len(self._batches), shown=self._team.leads) as progress:
            for rows in self._batches:
                expected[rows] = logits(self._teacher, ids[rows], self._precision)
                progress.step()
        return expected


def build(task: Task, precision: Precision) -> Student:
    """The student that the stage asks for."""
    stage, network = task.stage, load(task.student, precision.dtype, precision.device)
    if stage.lora:
        return Adapted(network, load(task.student, precision.dtype, precision.device), stage.lora, stage.seed)
    trained = kept(network, stage.embeddings, task.zeros)
    return (
        Rounded(network, trained, stage.quantise, task.student.source) if stage.quantise else Student(network, trained)
    )


def _zeros(stage: Distill, model: Model, place: Place) -> WeightSource:
    """Where pruned weights are zero: before rounding, which makes zeros that may come back.

    After pruning and rounding in one sweep the two cannot be told apart, and all zeros stay.
    """
    techniques = [stage.technique for stage in place.inputs.recipe.stages if isinstance(stage, Layerwise)]
    joint = any(isinstance(technique, GPTQ) and technique.sparsity for technique in techniques)
    return Unrounded(model.source) if stage.quantise and not joint else model.source


def record(task: Task, precision: Precision, state: State) -> Recovery:
    """What the lineage says of a finished run."""
    factor = 4 if task.stage.lora else 6  # frozen weights need no gradients of their own
    flops = factor * parameters_in_blocks(task.student) + 2 * parameters_in_blocks(task.teacher)
    effort = Effort(
        flops=float(task.lessons.training.numel() * flops),
        formula=f"{factor} N T (pruned) + 2 N T (base); {LETTERS}",
        precision=precision.name,
        measure=MEASURE,
    )
    return recovery(task.stage, task.lessons, effort, best_outcome(MEASURE, state))
