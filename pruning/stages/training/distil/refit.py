"""Fits a model to its smaller vocabulary: distils the base, which still has all tokens, across the two tokenisations.

At the end of each of the base's tokens the loss is KL(base || model), with the base's distribution over the next id of
the smaller vocabulary; within a removed token it is the next-token loss.
"""

from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.data.retokenise import Retokeniser
from pruning.model.blocks import find_blocks
from pruning.recipe.fitting import Fit
from pruning.stages.context import StageModel
from pruning.stages.inputs import Inputs
from pruning.stages.team import ALONE
from pruning.stages.training.data import TrainingData, draw_training_data
from pruning.stages.training.distil.alignment import Alignment
from pruning.stages.training.distil.divergence import divergence
from pruning.stages.training.journal import Journal, State
from pruning.stages.training.network import choose_precision, logits, parameters_in_blocks
from pruning.stages.training.record import LETTERS, Effort, best_outcome, recovery
from pruning.stages.training.run import RunSetup, TrainingRun, batches, best_model, identity, team_mean
from pruning.stages.training.student import Student, TrainedParameters, select_trained
from server.artifact.checkpoint.lineage import Recovery
from server.progress import Progress

MEASURE = "mean KL(base || pruned) of a held-out token's first id, and the loss of its other ids, nats"


class Task(NamedTuple):
    """Everything that decides the result of a fit except its precision."""

    fit: Fit
    student: StageModel
    teacher: StageModel
    data: TrainingData
    retokeniser: Retokeniser


def refit(
    fit: Fit, model: StageModel, inputs: Inputs, retokeniser: Retokeniser, folder: Path
) -> tuple[StageModel, Recovery]:
    """Train `model`, whose vocabulary is a part of the base's; returns the best step's, or `model` if none is better.

    Runs in this process alone; journals weights, optimiser and scores in `folder`.
    """
    setup = RunSetup(choose_precision(), Journal(folder), ALONE)
    teacher = StageModel(inputs.base.config, inputs.base)
    task = Task(fit, model, teacher, rich_data(fit, inputs, retokeniser), retokeniser)
    state = setup.journal.state(identity(setup.precision, task.data))
    if state.step < fit.steps:
        state = Refit(task, setup).run(state)
    reached = _record(task, setup, state)
    return (
        model if reached.rolled_back else best_model(model, setup.journal, state)._replace(files=model.files)
    ), reached


class Refit(TrainingRun):
    """A run with the teacher in memory as well."""

    doing = "fitting"

    def __init__(self, task: Task, setup: RunSetup) -> None:
        network = setup.load(task.student)
        super().__init__(task.fit, Student(network, _trained(network, task)), setup)
        self._data, self._teacher = task.data, setup.load(task.teacher)
        self._alignment = _alignment(task)
        self._batches = batches(len(task.data.held_out), task.fit.batch)
        self._expected = self._predict()

    def _train(self, step: int) -> None:
        ids = self._data.batch(step, self._stage.batch)
        with torch.no_grad():
            expected = self._alignment.fold(logits(self._teacher, ids, self._precision))
        self._optimiser.step(self._loss(self._student.network, ids, expected), step)

    def _measure(self, network: nn.Module) -> float:
        held_out = self._data.held_out
        return team_mean(
            self._batches, lambda rows: self._loss(network, held_out[rows], self._expected[rows]), self._team
        )

    def _loss(self, network: nn.Module, ids: Tensor, expected: Tensor) -> Tensor:
        """The mean loss of one of the base's tokens in `ids` [sequences, tokens]; `expected` has the base's part."""
        aligned = self._alignment.align(ids)
        given = logits(network, aligned.ids, self._precision).flatten(0, 1)
        known = divergence(given[aligned.ends][None], expected.flatten(0, 1)[None])
        if not len(aligned.inside):
            return known
        within = functional.cross_entropy(given[aligned.inside].float(), aligned.following, reduction="sum")
        return known + within / ids.numel()

    @torch.no_grad()
    def _predict(self) -> Tensor:
        """The base's log-probabilities [sequences, tokens, vocabulary] for the held-out ids, in a mapped file."""
        ids, expected = self._data.held_out, None
        with Progress("reading the held-out texts", len(self._batches)) as progress:
            for rows in self._batches:
                folded = self._alignment.fold(logits(self._teacher, ids[rows], self._precision))
                if expected is None:
                    expected = self._journal.mapped("expected", (*ids.shape, folded.shape[-1]), folded.dtype)
                expected[rows] = folded
                progress.step()
        assert expected is not None
        return expected


def _alignment(task: Task) -> Alignment:
    return Alignment(task.retokeniser, task.teacher.config["vocab_size"], task.student.config["vocab_size"])


def rich_data(fit: Fit, inputs: Inputs, retokeniser: Retokeniser) -> TrainingData:
    """The training sequences with the most removed tokens of all that were drawn, in the order of their draw."""
    wanted = fit.steps * fit.batch
    drawn = draw_training_data(msgspec.structs.replace(fit, tokens=wanted * fit.candidates * fit.length), inputs)
    removed = torch.tensor([sum(len(retokeniser.parts(id)) > 1 for id in row) for row in drawn.training.tolist()])
    richest = removed.argsort(descending=True, stable=True)[:wanted].sort().values
    return drawn._replace(training=drawn.training[richest])


def _trained(network: nn.Module, task: Task) -> TrainedParameters:
    """The parameters to train: all, with pruned weights kept zero, or the matrices outside the blocks."""
    if task.fit.weights == "all":
        return select_trained(network, True, task.student.source)
    prefix = find_blocks(network)[0] + "."
    named = network.named_parameters()
    return TrainedParameters({name: p for name, p in named if p.dim() > 1 and not name.startswith(prefix)}, {})


def _record(task: Task, setup: RunSetup, state: State) -> Recovery:
    """The lineage's record of a finished run."""
    factor = 6 if task.fit.weights == "all" else 4  # frozen weights need no gradients of their own
    flops = factor * parameters_in_blocks(task.student) + 2 * parameters_in_blocks(task.teacher)
    effort = Effort(
        flops=float(task.data.training.numel() * flops),
        formula=f"{factor} N T (pruned) + 2 N T (base); {LETTERS}",
        precision=setup.precision.name,
        measure=MEASURE,
    )
    return recovery(task.fit, task.data, effort, best_outcome(MEASURE, state))
