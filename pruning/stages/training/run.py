"""The training loop: resumes from its journal, trains to the end of its budget, and scores held-out texts on the way.

Needs the whole model in memory, with gradients and the optimiser's two moments.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import isfinite
from time import monotonic
from typing import ClassVar, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.weights import Overlay
from pruning.recipe.bounds import finite
from pruning.recipe.training import Training
from pruning.stages.context import StageContext, StageModel
from pruning.stages.freed_memory import kept_freed_memory
from pruning.stages.team import Team
from pruning.stages.training.data import TrainingData
from pruning.stages.training.journal import Journal, State
from pruning.stages.training.network import Precision, choose_precision, language_loss, load
from pruning.stages.training.optimiser import Optimiser
from pruning.stages.training.student import Student
from server.progress import Progress

logger = logging.getLogger(__name__)


class RunSetup(NamedTuple):
    """Precision, journal and processes of a run."""

    precision: Precision
    journal: Journal
    team: Team

    @classmethod
    def of(cls, context: StageContext) -> "RunSetup":
        """The setup of a stage that runs in `context`."""
        return cls(choose_precision(context.team.device), Journal(context.folder), context.team)

    def load(self, model: StageModel) -> nn.Module:
        """`model` in memory, on this process's device and in its precision."""
        return load(model, self.precision.dtype, self.precision.device)


class TrainingRun(ABC):
    """Trains `student`; subclasses define a step and the score."""

    doing: ClassVar[str]
    """Label of the progress bar."""

    def __init__(self, stage: Training, student: Student, setup: RunSetup) -> None:
        self._stage, self._student, self._setup = stage, student, setup
        self._precision, self._journal, self._team = setup
        self._optimiser = Optimiser(student, stage.learning_rate, stage.steps, stage.warmup, setup.team)
        self._state = State("")
        self._clock = monotonic()

    def run(self, state: State) -> State:
        """Train from `state` to the end of the budget; returns the final, journalled state."""
        logger.info("%s in %s: %s", self.doing, self._precision.name, self._precision.reason)
        self._state = state
        if state.step:
            self._optimiser.restore(self._student.own_part(self._journal.tensors()))
        else:
            self._begin()
        stage = self._stage
        with self._memory(), Progress(self.doing, stage.steps, state.step, shown=self._team.leads) as progress:
            for step in range(state.step + 1, stage.steps + 1):
                self._train(step)
                if step % stage.interval == 0 or step == stage.steps:
                    self._keep(step)
                progress.step()
        self._team.wait()
        return self._state

    def _memory(self) -> AbstractContextManager[None]:
        """What becomes of freed memory during the steps: it is kept for the next one."""
        return kept_freed_memory()

    def _begin(self) -> None:
        """Score the untrained model."""
        self._score(0, self._student.scored_network())

    @abstractmethod
    def _train(self, step: int) -> None:
        """Take step `step`, counted from 1, on this process's share of its batch."""

    @abstractmethod
    def _measure(self, network: nn.Module) -> float:
        """The score of `network` on all held-out texts, lower is better; without gradients, equal in every process."""

    def _keep(self, step: int) -> None:
        """Store and score the weights after `step`, then journal the state, so a killed run resumes here."""
        self._store(step)
        self._score(step, self._student.scored_network())
        tensors = self._student.collected(self._optimiser.tensors())
        if self._team.leads:
            self._journal.save(self._state, tensors)

    def _store(self, step: int) -> None:
        """Store the weights after `step`, which may become the best."""
        weights = self._student.collected(self._student.weights())
        if self._team.leads:
            self._journal.save_weights(step, weights)

    @torch.no_grad()
    def _score(self, step: int, network: nn.Module) -> None:
        """Add the score of `network` after `step` to the state; a score that is not finite counts as the worst."""
        score = self._measure(network)
        if isfinite(score):
            logger.info("step %d: held-out score %.4f", step, score)
        elif step:
            advice = f"choose a learning_rate below {self._stage.learning_rate:g}"
            logger.warning(
                "%s has diverged: the held-out score after step %d is not finite; %s", self.doing, step, advice
            )
        else:
            raise ModelRefused(f"{self.doing} cannot start: the model's score on the held-out texts is not finite")
        now = monotonic()
        seconds, self._clock = self._state.seconds + now - self._clock, now
        scores = (*self._state.scores, (step, finite(score)))
        self._state = msgspec.structs.replace(self._state, step=step, scores=scores, seconds=seconds)


def identity(precision: Precision, *data: TrainingData) -> str:
    """A key of data digests and precision, by which a journal recognises the run that may resume from it."""
    digests = [data.digest for part in data for data in (part.training_record, part.held_out_record)]
    return " ".join([*digests, precision.name])


def batches(sequences: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `sequences` sequences."""
    return [slice(start, min(start + size, sequences)) for start in range(0, sequences, size)]


def team_mean(parts: Sequence[slice], measure: Callable[[slice], Tensor], team: Team) -> float:
    """The mean over all sequences of all processes of `measure`, which gives the mean over one of `parts`."""
    sizes: list[int] = [part.stop - part.start for part in parts]
    own: float = sum(measure(part).item() * size for part, size in zip(parts, sizes, strict=True))
    total, count = team.total([own, sum(sizes)])
    return total / count


def held_out_loss(network: nn.Module, ids: Tensor, batch: int, setup: RunSetup) -> float:
    """The mean next-token loss of `network` on `ids` [sequences, length], nats, `batch` sequences at a time."""
    own = setup.team.part(ids)
    return team_mean(
        batches(len(own), batch), lambda rows: language_loss(network, own[rows], setup.precision), setup.team
    )


def best_model(model: StageModel, journal: Journal, state: State) -> StageModel:
    """`model` with the weights of a finished run's best step."""
    return StageModel(model.config, Overlay(model.source, [journal.weights(state.best[0])]))
