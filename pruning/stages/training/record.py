"""The lineage's record of a finished training run: cost, measure and outcome."""

import logging
from typing import NamedTuple

import msgspec

from pruning.model.weights import parameters
from pruning.recipe.bounds import WORST
from pruning.recipe.training import Training
from pruning.stages.context import StageModel
from pruning.stages.training.data import TrainingData
from pruning.stages.training.journal import State
from server.artifact.checkpoint.lineage import Recovery, Step

logger = logging.getLogger(__name__)

LETTERS = "N: parameters of the blocks, zeros included; T: tokens"
"""The letters in the formulas for the cost."""


class Effort(NamedTuple):
    """The cost and the measure of a run, under the field names of the lineage's `Recovery`."""

    flops: float
    """Floating-point operations of the training run."""
    formula: str
    precision: str
    measure: str


class Outcome(NamedTuple):
    """The held-out scores before and after training, and whether the model was rolled back."""

    before: float
    after: float
    rolled_back: bool


def best_outcome(measure: str, state: State) -> Outcome:
    """The outcome of a finished run's best step, which is logged, or of its rollback."""
    before = state.scores[0][1]
    step, after = min(state.scores[1:], key=lambda entry: entry[1])
    rolled_back = state.best[0] == 0
    if rolled_back:
        reached = "not finite" if after == WORST else f"at best {after:.4f}"
        logger.warning("training is rolled back: %s was %.4f before, %s after", measure, before, reached)
    else:
        logger.info("%s: %.4f before training, %.4f after (step %d)", measure, before, after, step)
    return Outcome(before, after, rolled_back)


def recovery(stage: Training, data: TrainingData, effort: Effort, outcome: Outcome) -> Recovery:
    """The lineage's record of a finished run's data, cost and outcome."""
    tokens = stage.steps * stage.batch * stage.length
    return Recovery(
        training=data.training_record,
        held_out=data.held_out_record,
        tokens=tokens,
        pretraining_ratio=tokens / stage.pretraining_tokens if stage.pretraining_tokens else None,
        **effort._asdict(),
        **outcome._asdict(),
    )


def step_of(stage: Training, model: StageModel, seconds: float, recovery: Recovery) -> Step:
    """The lineage's record of a finished training stage, whose result is `model`."""
    options = msgspec.to_builtins(stage)
    return Step(
        technique=options.pop("kind"),
        options=options,
        sparsity={},
        seconds=round(seconds, 1),
        parameters=parameters(model.source)[0],
        recovery=recovery,
    )
