"""A training run that goes from where its journal says it is to the end of its budget, and is scored on the way.

It needs the whole model in memory, with gradients and the optimiser's two moments.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import isfinite
from time import monotonic
from typing import ClassVar, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.weights import Overlay, parameters
from pruning.progress import Progress
from pruning.recipe.bounds import WORST, finite
from pruning.recipe.options import Training
from pruning.stages.context import Model, Place
from pruning.stages.team import Team
from pruning.stages.training.journal import Journal, State
from pruning.stages.training.network import Precision, choose_precision, language_loss, load
from pruning.stages.training.optimiser import Optimiser
from pruning.stages.training.student import Student
from pruning.stages.training.text import Lessons
from server.artifact.checkpoint.lineage import Recovery, Step

logger = logging.getLogger(__name__)

LETTERS = "N: parameters of the blocks, zeros included; T: tokens"


class Setting(NamedTuple):
    """How a run computes, where it keeps its state, and the processes that take part."""

    precision: Precision
    journal: Journal
    team: Team

    @classmethod
    def of(cls, place: Place) -> "Setting":
        """That of a stage at `place`."""
        return cls(choose_precision(place.team.device), Journal(place.folder), place.team)

    def load(self, model: Model) -> nn.Module:
        """`model` in memory, on the device and in the precision of this process."""
        return load(model, self.precision.dtype, self.precision.device)


class Run(ABC):
    """Trains `student`; what a step is and how a model scores is the subclass's matter."""

    doing: ClassVar[str]
    """What the progress bar says."""

    def __init__(self, stage: Training, student: Student, setting: Setting) -> None:
        self._stage, self._student, self._setting = stage, student, setting
        self._precision, self._journal, self._team = setting
        self._optimiser = Optimiser(student, stage.learning_rate, stage.steps, stage.warmup, setting.team)
        self._state = State("")
        self._clock = monotonic()

    def run(self, state: State) -> State:
        """Train from `state` to the end of the budget; returns the last state, which is written then."""
        logger.info("%s in %s: %s", self.doing, self._precision.name, self._precision.reason)
        self._state = state
        if state.step:
            self._optimiser.restore(self._journal.tensors())
        else:
            self._begin()
        stage = self._stage
        with Progress(self.doing, stage.steps, state.step, shown=self._team.leads) as progress:
            for step in range(state.step + 1, stage.steps + 1):
                self._train(step)
                if step % stage.interval == 0 or step == stage.steps:
                    self._keep(step)
                progress.step()
        self._team.wait()
        return self._state

    def _begin(self) -> None:
        """Score the model as it comes."""
        self._score(0, self._student.judged())

    @abstractmethod
    def _train(self, step: int) -> None:
        """Make one step, the first of which is 1, on this process's part of its batch."""

    @abstractmethod
    def _judge(self, network: nn.Module) -> float:
        """The score of `network` on all held-out texts, without gradients and the same in every process; lower is
        better."""

    def _keep(self, step: int) -> None:
        """Store and score what training has come to after `step`, and make the run go on from here if it is killed."""
        self._store(step)
        self._score(step, self._student.judged())
        if self._team.leads:
            self._journal.save(self._state, self._optimiser.tensors())

    def _store(self, step: int) -> None:
        """Keep the weights after `step`, which may turn out the best."""
        if self._team.leads:
            self._journal.save_weights(step, self._student.weights())

    @torch.no_grad()
    def _score(self, step: int, network: nn.Module) -> None:
        """Add the score of `network`, which has the weights after `step`, to the state; diverged, it is the worst."""
        score = self._judge(network)
        if isfinite(score):
            logger.info("step %d: held-out score %.4f", step, score)
        elif step:
            advice = f"choose a learning_rate below {self._stage.learning_rate:g}"
            logger.warning(
                "%s has diverged: the held-out score after step %d is not finite; %s", self.doing, step, advice
            )
        else:
            raise ModelRefused(f"{self.doing} cannot begin: the model's score on the held-out texts is not finite")
        now = monotonic()
        seconds, self._clock = self._state.seconds + now - self._clock, now
        scores = (*self._state.scores, (step, finite(score)))
        self._state = msgspec.structs.replace(self._state, step=step, scores=scores, seconds=seconds)


def identity(precision: Precision, *lessons: Lessons) -> str:
    """Equal for two runs that may go on from each other's state."""
    digests = [data.digest for part in lessons for data in (part.training_data, part.held_out_data)]
    return " ".join([*digests, precision.name])


class Effort(NamedTuple):
    """What a run took and how it was measured, in the words of the lineage's `Recovery`."""

    flops: float
    formula: str
    precision: str
    measure: str


class Outcome(NamedTuple):
    """The score before training and the one that it reached, kept or not."""

    before: float
    after: float
    rolled_back: bool


def batches(sequences: int, size: int) -> list[slice]:
    """Which of so many sequences are taken together."""
    return [slice(start, min(start + size, sequences)) for start in range(0, sequences, size)]


def mean_over(parts: Sequence[slice], measure: Callable[[slice], Tensor], team: Team) -> float:
    """The mean over all sequences of `measure`, which gives that of one of `parts`, of all processes' own parts."""
    sizes: list[int] = [part.stop - part.start for part in parts]
    own: float = sum(measure(part).item() * size for part, size in zip(parts, sizes, strict=True))
    total, count = team.total([own, sum(sizes)])
    return total / count


def language_score(network: nn.Module, ids: Tensor, batch: int, setting: Setting) -> float:
    """The language model's loss of `network` on all of `ids` [sequences, length], `batch` of them at a time."""
    own = setting.team.part(ids)
    return mean_over(
        batches(len(own), batch), lambda rows: language_loss(network, own[rows], setting.precision), setting.team
    )


def best_outcome(measure: str, state: State) -> Outcome:
    """What the best step of a finished run reached; the log says it, or that nothing is kept."""
    before = state.scores[0][1]
    step, after = min(state.scores[1:], key=lambda entry: entry[1])
    rolled_back = state.best[0] == 0
    if rolled_back:
        reached = "not finite" if after == WORST else f"at best {after:.4f}"
        logger.warning("training is rolled back: %s was %.4f before, %s after", measure, before, reached)
    else:
        logger.info("%s: %.4f before training, %.4f after (step %d)", measure, before, after, step)
    return Outcome(before, after, rolled_back)


def best_model(model: Model, journal: Journal, state: State) -> Model:
    """`model` with the weights after the best step of a finished run."""
    return Model(model.config, Overlay(model.source, [journal.weights(state.best[0])]))


def recovery(stage: Training, lessons: Lessons, effort: Effort, outcome: Outcome) -> Recovery:
    """What the lineage says of a finished run."""
    tokens = stage.steps * stage.batch * stage.length
    return Recovery(
        training=lessons.training_data,
        held_out=lessons.held_out_data,
        tokens=tokens,
        pretraining_ratio=tokens / stage.pretraining_tokens if stage.pretraining_tokens else None,
        **effort._asdict(),
        **outcome._asdict(),
    )


def step_of(stage: Training, model: Model, seconds: float, recovery: Recovery) -> Step:
    """The lineage's record of `stage`, which left `model`."""
    options = msgspec.to_builtins(stage)
    return Step(
        technique=options.pop("kind"),
        options=options,
        sparsity={},
        seconds=round(seconds, 1),
        parameters=parameters(model.source)[0],
        recovery=recovery,
    )
