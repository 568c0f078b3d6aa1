"""Distils the dense base into the pruned model: AdamW on what is left, the loss is KL(base || pruned) on full logits.

Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531, section 2. Kept is the
step that scores best on texts that are never trained on; if none beats the start, the model stays as it was.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pruning.progress import Progress
from pruning.stage import Model, Place
from pruning.stages import Distill, Layerwise
from pruning.techniques import GPTQ
from pruning.training.divergence import divergence
from pruning.training.journal import Journal, State
from pruning.training.network import Precision, choose_precision, load, logits, parameters_in_blocks
from pruning.training.rounded import Rounded
from pruning.training.run import (
    LETTERS,
    Effort,
    Run,
    batches,
    best_model,
    best_outcome,
    identity,
    mean_over,
    recovery,
    step_of,
)
from pruning.training.student import Adapted, Student, kept
from pruning.training.text import Lessons, draw
from pruning.weights import Source, Unrounded
from server.checkpoint.lineage import Recovery, Step

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
    precision = choose_precision()
    journal = Journal(place.folder)
    state = journal.state(identity(precision, task.lessons))
    if state.step < stage.steps:
        state = Distillation(task, precision, journal).run(state)
    reached = record(task, precision, state)
    if stage.quantise or not reached.rolled_back:  # what it is rolled back to is rounded too
        model = best_model(model, journal, state)
    return model, step_of(stage, model, state.seconds, reached)


class Task(NamedTuple):
    """Everything that decides what a run comes to, but the precision."""

    stage: Distill
    student: Model
    teacher: Model
    lessons: Lessons
    zeros: Source
    """Whose zeros stay, as far as the student has them."""


class Distillation(Run):
    """One run, which needs the teacher in memory as well."""

    doing = "distilling"

    def __init__(self, task: Task, precision: Precision, journal: Journal) -> None:
        super().__init__(task.stage, build(task, precision.dtype), precision, journal)
        self._task = task
        self._teacher = load(task.teacher, precision.dtype)
        self._batches = batches(len(task.lessons.held_out), task.stage.batch)
        self._expected = self._predict(task.lessons.held_out)

    def _begin(self) -> None:
        if self._task.stage.quantise:  # what the run may be rolled back to
            self._journal.save_weights(0, self._student.weights())
        super()._begin()

    def _train(self, step: int) -> None:
        ids = self._task.lessons.batch(step, self._task.stage.batch)
        with torch.no_grad():
            expected = logits(self._teacher, ids, self._precision)
        given = logits(self._student.network, ids, self._precision)
        self._optimiser.step(divergence(given, expected, self._task.stage.temperature), step)

    def _judge(self, network: nn.Module) -> float:
        def measure(rows: slice) -> Tensor:
            given = logits(network, self._task.lessons.held_out[rows], self._precision)
            return divergence(given, self._expected[rows])

        return mean_over(self._batches, measure)

    @torch.no_grad()
    def _predict(self, held_out: Tensor) -> Tensor:
        """The teacher's logits [sequences, length, vocabulary] for the held-out ids, in a mapped file."""
        first = logits(self._teacher, held_out[:1], self._precision)
        expected = self._journal.mapped("expected", (*held_out.shape, first.shape[-1]), first.dtype)
        with Progress("reading the held-out texts", len(self._batches)) as progress:
            for rows in self._batches:
                expected[rows] = logits(self._teacher, held_out[rows], self._precision)
                progress.step()
        return expected


def build(task: Task, dtype: torch.dtype) -> Student:
    """The student that the stage asks for, with its network in `dtype`."""
    stage, network = task.stage, load(task.student, dtype)
    if stage.lora:
        return Adapted(network, load(task.student, dtype), stage.lora, stage.seed)
    trained = kept(network, stage.embeddings, task.zeros)
    return (
        Rounded(network, trained, stage.quantise, task.student.source) if stage.quantise else Student(network, trained)
    )


def _zeros(stage: Distill, model: Model, place: Place) -> Source:
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
