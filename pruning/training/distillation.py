"""Distils the dense base into the pruned model: AdamW on what is left, the loss is KL(base || pruned) on full logits.

Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531, section 2. Kept is the
step that scores best on texts that are never trained on; if none beats the start, the model stays as it was.
"""

import logging
from time import monotonic
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from pruning.progress import Progress
from pruning.stage import Model, Place
from pruning.stages import Distill, Layerwise
from pruning.techniques import GPTQ
from pruning.training.divergence import divergence
from pruning.training.journal import Journal, State
from pruning.training.network import Precision, choose_precision, load, logits, parameters_in_blocks
from pruning.training.optimiser import Optimiser
from pruning.training.rounded import Rounded
from pruning.training.student import Adapted, Student, kept
from pruning.training.text import Lessons, draw
from pruning.weights import Overlay, Source, Unrounded, parameters
from server.checkpoint.lineage import Recovery, Step

logger = logging.getLogger(__name__)

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
    state = journal.state(task.identity(precision))
    if state.step < stage.steps:
        logger.info("distilling in %s: %s", precision.name, precision.reason)
        state = Distillation(task, precision, journal).run(state)
    recovery = record(task, precision, state)
    if stage.quantise or not recovery.rolled_back:  # what it is rolled back to is rounded too
        model = Model(model.config, Overlay(model.source, [journal.weights(state.best[0])]))
    options = msgspec.to_builtins(stage)
    step = Step(
        technique=options.pop("kind"),
        options=options,
        sparsity={},
        seconds=round(state.seconds, 1),
        parameters=parameters(model.source)[0],
        recovery=recovery,
    )
    return model, step


class Task(NamedTuple):
    """Everything that decides what a run comes to, but the precision."""

    stage: Distill
    student: Model
    teacher: Model
    lessons: Lessons
    zeros: Source
    """Whose zeros stay, as far as the student has them."""

    def identity(self, precision: Precision) -> str:
        """Equal for two runs that may go on from each other's state."""
        return f"{self.lessons.training_data.digest} {self.lessons.held_out_data.digest} {precision.name}"

    def batch(self, step: int) -> Tensor:
        """The ids [batch, length] of one step."""
        return self.lessons.training[step * self.stage.batch :][: self.stage.batch]


class Distillation:
    """One run, which needs student, teacher, gradients and the optimiser's two moments in memory."""

    def __init__(self, task: Task, precision: Precision, journal: Journal) -> None:
        self._task, self._precision, self._journal = task, precision, journal
        stage, held_out = task.stage, task.lessons.held_out
        self._teacher = load(task.teacher, precision.dtype)
        self._student = build(task, precision.dtype)
        self._optimiser = Optimiser(self._student, stage.learning_rate, stage.steps, stage.warmup)
        self._clock = monotonic()
        self._batches = [slice(start, start + stage.batch) for start in range(0, len(held_out), stage.batch)]
        self._expected = self._predict(held_out)

    def run(self, state: State) -> State:
        """Train from `state` to the end of the budget; returns the last state."""
        stage = self._task.stage
        if state.step:
            self._optimiser.restore(self._journal.tensors())
        else:
            if stage.quantise:
                self._journal.save_weights(0, self._student.weights())
            state = self._scored(state, 0)
        with Progress("distilling", stage.steps, state.step) as progress:
            for step in range(state.step + 1, stage.steps + 1):
                self._train(step)
                if step % stage.interval == 0 or step == stage.steps:
                    state = self._keep(state, step)
                progress.step()
        return state

    def _train(self, step: int) -> None:
        """Make one step, the first of which is 1."""
        ids = self._task.batch(step - 1)
        with torch.no_grad():
            expected = logits(self._teacher, ids, self._precision)
        given = logits(self._student.network, ids, self._precision)
        self._optimiser.step(divergence(given, expected, self._task.stage.temperature), step)

    def _keep(self, state: State, step: int) -> State:
        """Store the weights after `step`, score them, and make the run go on from here if it is killed."""
        self._journal.save_weights(step, self._student.weights())
        state = self._scored(state, step)
        self._journal.save(state, self._optimiser.tensors())
        return state

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

    @torch.no_grad()
    def _scored(self, state: State, step: int) -> State:
        """`state` after `step` with the score of the student, as it would be stored, on the held-out texts."""
        network, held_out = self._student.judged(), self._task.lessons.held_out
        total = 0.0
        for rows in self._batches:
            given = logits(network, held_out[rows], self._precision)
            total += divergence(given, self._expected[rows]).item() * len(given)
        scores = (*state.scores, (step, total / len(held_out)))
        logger.info("step %d: held-out KL %.4f", step, scores[-1][1])
        now = monotonic()
        seconds, self._clock = now - self._clock, now
        return msgspec.structs.replace(state, step=step, scores=scores, seconds=state.seconds + seconds)


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
    """What the lineage says of a finished run; the log says it too."""
    stage, lessons = task.stage, task.lessons
    before = state.scores[0][1]
    step, after = min(state.scores[1:], key=lambda entry: entry[1])
    rolled_back = state.best[0] == 0
    if rolled_back:
        logger.warning("distillation is rolled back: held-out KL was %.4f before, at best %.4f after", before, after)
    else:
        logger.info("held-out KL %.4f before distillation, %.4f after (step %d)", before, after, step)
    tokens = lessons.training.numel()
    factor = 4 if stage.lora else 6  # frozen weights need no gradients of their own
    flops = tokens * (factor * parameters_in_blocks(task.student) + 2 * parameters_in_blocks(task.teacher))
    return Recovery(
        training=lessons.training_data,
        held_out=lessons.held_out_data,
        tokens=tokens,
        flops=float(flops),
        formula=f"{factor} N T (pruned) + 2 N T (base); N: parameters of the blocks, zeros included; T: tokens",
        precision=precision.name,
        measure=MEASURE,
        before=before,
        after=after,
        rolled_back=rolled_back,
        pretraining_ratio=tokens / stage.pretraining_tokens if stage.pretraining_tokens else None,
    )
