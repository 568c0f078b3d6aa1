"""The stage `distill`: trains the pruned model by AdamW to minimise KL(base || pruned) on full logits.

Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531, section 2. The step that
scores best on held-out texts is kept; if none beats the start, the model is rolled back.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.model.weights import Unrounded, WeightSource
from pruning.recipe.options import Layerwise
from pruning.recipe.training import Distill
from pruning.stages.context import StageContext, StageModel
from pruning.stages.team import ALONE, Team
from pruning.stages.training.data import TrainingData, draw_training_data, refuse_scarce_text
from pruning.stages.training.distil.compact import CompactStudent
from pruning.stages.training.distil.divergence import divergence
from pruning.stages.training.distil.hidden_states import BlockStates, refuse_other_shape
from pruning.stages.training.distil.kept import StoredValues
from pruning.stages.training.distil.lora import LoRAStudent, adapters
from pruning.stages.training.distil.quantised import QuantisedStudent
from pruning.stages.training.distil.sharded import OwnRows, ShardedStudent, noticing_lost_process
from pruning.stages.training.journal import State
from pruning.stages.training.network import (
    Precision,
    checkpoint_blocks,
    load,
    load_mapped,
    load_sharded,
    logits,
    parameters_in_blocks,
)
from pruning.stages.training.reconstruct.block import relative_error
from pruning.stages.training.record import LETTERS, Effort, best_outcome, recovery, step_of
from pruning.stages.training.run import RunSetup, TrainingRun, batches, best_model, identity, team_mean
from pruning.stages.training.student import Student, select_trained
from pruning.techniques import GPTQ
from server.artifact.checkpoint.lineage import Recovery, Step
from server.progress import Progress

MEASURE = "mean KL(base || pruned) of a held-out token's prediction, nats"


def apply(stage: Distill, model: StageModel, context: StageContext) -> tuple[StageModel, Step]:
    """Train `model` towards the base; returns the best step's model, or `model` if no step is better.

    Journals weights, optimiser and scores every `interval` steps.
    """
    task = Task(
        stage,
        model,
        StageModel(context.inputs.base.config, context.inputs.base),
        draw_training_data(stage, context.inputs),
        _zeros(stage, model, context),
    )
    setup = _setup(stage, context)
    state = setup.journal.state(identity(setup.precision, task.data))
    if state.step < stage.steps:
        with noticing_lost_process() if stage.memory == "sharded" else nullcontext():
            state = Distillation(task, setup).run(state)
    reached = record(task, setup.precision, state)
    if stage.quantise or not reached.rolled_back:  # the model it is rolled back to is rounded too
        model = best_model(model, setup.journal, state)
    return model, step_of(stage, model, state.seconds, reached)


def check(stage: Distill, config: dict[str, Any], context: StageContext) -> dict[str, Any]:
    """The unchanged configuration; raises DataError for too little text, RecipeError if LoRA's package is missing."""
    refuse_scarce_text(stage, context.inputs)
    if stage.states:
        refuse_other_shape(config, context.inputs.base.config)
    if stage.lora:
        adapters()
    return config


class Task(NamedTuple):
    """Everything that decides the result of a run except its precision."""

    stage: Distill
    student: StageModel
    teacher: StageModel
    data: TrainingData
    zeros: WeightSource
    """The weights whose zeros are kept, if the student has them too."""


class Distillation(TrainingRun):
    """A run with the teacher in memory as well."""

    doing = "distilling"

    def __init__(self, task: Task, setup: RunSetup) -> None:
        super().__init__(task.stage, build(task, setup.precision, setup.team), setup)
        self._task = task
        self._teacher = _teacher(task, setup)
        self._held_out = setup.team.part(task.data.held_out)
        self._batches = batches(len(self._held_out), task.stage.batch)
        self._expected = self._predict()
        networks = (self._teacher, self._student.network) if task.stage.states else ()
        self._states = [BlockStates(network) for network in networks]

    def _memory(self) -> AbstractContextManager[None]:
        return super()._memory() if self._task.stage.memory == "plenty" else nullcontext()

    def _begin(self) -> None:
        if self._task.stage.quantise:  # the run may be rolled back to step 0
            self._store(0)
        super()._begin()

    def _train(self, step: int) -> None:
        ids = self._team.part(self._task.data.batch(step, self._task.stage.batch))
        stage = self._task.stage
        with torch.no_grad():
            expected = logits(self._teacher, ids, self._precision)
        given = logits(self._student.network, ids, self._precision)
        loss = divergence(given, expected, stage.temperature)
        if self._states:
            wanted, found = (states.take() for states in self._states)
            loss = loss + stage.states * torch.stack(list(map(relative_error, found, wanted))).mean()
        self._optimiser.step(loss, step)

    def _measure(self, network: nn.Module) -> float:
        def measure(rows: slice) -> Tensor:
            given = logits(network, self._held_out[rows], self._precision)
            for states in self._states:
                states.take()
            return divergence(given, self._expected[rows].to(given.device))

        return team_mean(self._batches, measure, self._team)

    @torch.no_grad()
    def _predict(self) -> Tensor:
        """The teacher's logits [sequences, length, vocabulary] for this process's held-out ids, in a mapped file."""
        ids = self._held_out
        if not len(ids):  # more processes than held-out sequences
            return torch.empty(0)
        first = logits(self._teacher, ids[:1], self._precision)
        name = "expected" if self._team.leads else f"expected-{self._team.rank}"
        expected = self._journal.mapped(name, (*ids.shape, first.shape[-1]), first.dtype)
        with Progress("reading the held-out texts", len(self._batches), shown=self._team.leads) as progress:
            for rows in self._batches:
                expected[rows] = logits(self._teacher, ids[rows], self._precision)
                progress.step()
        return expected


def _setup(stage: Distill, context: StageContext) -> RunSetup:
    """The setup of the run; in little memory always in bfloat16 on the CPU, whose weights the base's file holds."""
    setup = RunSetup.of(context)
    if stage.memory == "little" and setup.precision.device.type == "cpu":
        return setup._replace(precision=Precision(torch.bfloat16, 'memory = "little" trains the stored weights'))
    return setup


def _teacher(task: Task, setup: RunSetup) -> nn.Module:
    """The base in memory: whole, mapped from its file, or divided among the processes."""
    match task.stage.memory:
        case "little":
            return load_mapped(task.teacher, setup.precision)
        case "sharded":
            return load_sharded(task.teacher, setup.precision, setup.team)
    return setup.load(task.teacher)


def build(task: Task, precision: Precision, team: Team = ALONE) -> Student:
    """The student of the stage's options: divided among processes, with adapters, quantised, compact, or plain."""
    stage = task.stage
    if stage.memory == "sharded":
        network = load_sharded(task.student, precision, team)
        return ShardedStudent(network, select_trained(network, stage.embeddings, OwnRows(task.zeros, team)), team)
    network = load(task.student, precision.dtype, precision.device)
    if stage.lora:
        return LoRAStudent(network, load(task.student, precision.dtype, precision.device), stage.lora, stage.seed)
    trained = select_trained(network, stage.embeddings, task.zeros)
    if stage.memory == "little":
        checkpoint_blocks(network)
        return CompactStudent(network, trained)
    return (
        QuantisedStudent(network, trained, stage.quantise, task.student.source)
        if stage.quantise
        else Student(network, trained)
    )


def _zeros(stage: Distill, model: StageModel, context: StageContext) -> WeightSource:
    """The source whose zeros are the pruned weights, which stay zero in training.

    For quantisation-aware training these are the weights before rounding, as weights that merely round to zero may
    grow again. After GPTQ with sparsity the two cannot be told apart, so all zeros stay, or with `quantise = "kept"`
    those for which no value is stored.
    """
    earlier = [stage for stage in context.inputs.recipe.stages if isinstance(stage, Layerwise)]
    if not any(isinstance(layerwise.technique, GPTQ) and any(layerwise.sparsities) for layerwise in earlier):
        return Unrounded(model.source) if stage.quantise else model.source
    return StoredValues(model.source) if stage.quantise == "kept" else model.source


def record(task: Task, precision: Precision, state: State) -> Recovery:
    """The lineage's record of a finished run."""
    factor = 4 if task.stage.lora else 6  # frozen weights need no gradients of their own
    flops = factor * parameters_in_blocks(task.student) + 2 * parameters_in_blocks(task.teacher)
    effort = Effort(
        flops=float(task.data.training.numel() * flops),
        formula=f"{factor} N T (pruned) + 2 N T (base); {LETTERS}",
        precision=precision.name,
        measure=MEASURE,
    )
    return recovery(task.stage, task.data, effort, best_outcome(MEASURE, state))
