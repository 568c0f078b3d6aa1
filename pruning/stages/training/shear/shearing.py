"""The stage `shear`: trains weights and masks together on the language-model loss, then cuts what the masks remove.

Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, section 2.1. Differs from the official code in removing
heads by whole KV groups, and in where hidden dimensions are masked (see `masked`). The whole model is in memory with
gradients and moments. Where an architecture normalises a block's output, a layer's mask acts only at 0.
"""

import logging
from math import ceil
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused, RecipeError
from pruning.model.blocks import Blocks
from pruning.model.weights import Shards, write_file
from pruning.recipe.bounds import WORST
from pruning.recipe.training import Shear
from pruning.stages.context import StageContext, StageModel, blocks_without_weights
from pruning.stages.structured.depth import listed
from pruning.stages.structured.shape import TargetShape, find_structure
from pruning.stages.training.data import TrainingData, draw_training_data, refuse_scarce_text
from pruning.stages.training.journal import State
from pruning.stages.training.network import Precision, language_loss, load, logits, parameters_in_blocks
from pruning.stages.training.record import LETTERS, Effort, Outcome, recovery, step_of
from pruning.stages.training.run import RunSetup, TrainingRun, held_out_loss, identity
from pruning.stages.training.shear.masked import MaskedStudent, MaskHooks, Masks, cut_by, decided
from server.artifact.checkpoint.lineage import Step

logger = logging.getLogger(__name__)

MEASURE = "mean negative log-likelihood of a held-out token, nats"
TOLERANCE = 1e-3
"""Largest difference between the logits of cut and masked model, relative to the largest logit, in float32."""


def apply(stage: Shear, model: StageModel, context: StageContext) -> tuple[StageModel, Step]:
    """Learn which units remain and cut; returns the smaller model. Journals weights, masks and scores.

    Raises RecipeError or ModelRefused before any work if the target does not fit or the model cannot be cut.
    """
    blocks = context.blocks(model)
    shape = _shape(stage, model.config, blocks)
    shape.check(blocks.model)
    data, setup = draw_training_data(stage, context.inputs), RunSetup.of(context)
    state = setup.journal.state(identity(setup.precision, data))
    if state.step < stage.steps:
        prove(model, shape, context.check_ids)
    shear = Shearing(stage, setup.load(model), shape, data, setup)
    state = shear.run(state)
    _refuse_diverged(state)
    result, removed = shear.result(context.folder / "sheared.safetensors")
    effort = Effort(
        flops=6.0 * parameters_in_blocks(model) * data.training.numel(),
        formula=f"6 N T (before the cut); {LETTERS}",
        precision=setup.precision.name,
        measure=MEASURE,
    )
    outcome = Outcome(state.scores[0][1], state.scores[-1][1], rolled_back=False)
    logger.info("%s: %.4f whole, %.4f in its new shape", MEASURE, outcome.before, outcome.after)
    step = step_of(stage, result, state.seconds, recovery(stage, data, effort, outcome))
    return result, msgspec.structs.replace(step, removed_blocks=removed)


def _refuse_diverged(state: State) -> None:
    """Raise RecipeError if the final loss is not finite: there is no earlier step to keep."""
    if state.scores[-1][1] == WORST:
        raise RecipeError("shearing diverged, as its held-out loss is not finite: choose a lower learning_rate")


def check(stage: Shear, config: dict[str, Any], context: StageContext) -> dict[str, Any]:
    """The configuration afterwards; raises before any work if the target or the texts do not fit."""
    blocks = blocks_without_weights(config)
    after = _shape(stage, config, blocks).check(blocks.model)
    refuse_scarce_text(stage, context.inputs)
    return after


def _shape(stage: Shear, config: dict[str, Any], blocks: Blocks) -> TargetShape:
    """The target shape of the model in `blocks`."""
    config = listed(config, blocks) if stage.layers else config
    return TargetShape(config, find_structure(blocks, stage.plan, config), stage.target)


class Shearing(TrainingRun):
    """One run; the first score is the whole model's, each later one that of the model cut at that step."""

    doing = "shearing"

    def __init__(
        self, stage: Shear, network: nn.Module, shape: TargetShape, data: TrainingData, setup: RunSetup
    ) -> None:
        self._masks = Masks(shape, stage.seed, setup.precision.device)
        self._masked = MaskedStudent(network, shape, self._masks, stage.mask_learning_rate)
        super().__init__(stage, self._masked, setup)
        self._hooks = MaskHooks(network, shape.structure)
        self._data = data
        self._warmup = ceil(stage.target_warmup * stage.steps)

    def result(self, file: Path) -> tuple[StageModel, tuple[int, ...]]:
        """Write the cut model to `file`; returns it and the removed blocks."""
        left, removed = self._masked.cut()
        if self._team.leads:
            write_file(file, {name: left.source.tensor(name) for name in left.source.names()})
        self._team.wait()
        return StageModel(left.config, Shards([file])), removed

    def _begin(self) -> None:
        self._hooks.use({})
        self._score(0, self._student.network)

    def _train(self, step: int) -> None:
        self._hooks.use(self._masks.sample(step))
        ids = self._team.part(self._data.batch(step, self._stage.batch))
        loss = language_loss(self._student.network, ids, self._precision)
        self._optimiser.step(loss + self._masks.penalty(step, self._warmup), step)

    def _store(self, step: int) -> None:
        """Nothing: the last step counts, not the best, as only then the masks meet the target."""

    def _measure(self, network: nn.Module) -> float:
        return held_out_loss(network, self._data.held_out, self._stage.batch, self._setup)


@torch.no_grad()
def prove(model: StageModel, shape: TargetShape, ids: Tensor) -> None:
    """Check on `ids` [2, tokens], with random masks, that the cut model equals the masked one; raises ModelRefused."""
    exact = Precision(torch.float32, "")
    network = load(model, exact.dtype)
    generator = torch.Generator().manual_seed(0)
    noise = {kind: torch.randn(shape.structure.per_layer(kind), generator=generator) for kind in shape.target}
    masks = decided(shape, noise)
    left, _ = cut_by(masks, shape, network, dict(network.named_parameters()))
    MaskHooks(network, shape.structure).use(masks)
    expected = logits(network, ids, exact)
    given = logits(load(left, exact.dtype), ids, exact)
    difference = ((given - expected).abs().max() / expected.abs().max()).item()
    if not difference < TOLERANCE:
        target = ", ".join(f"{kind} = {size}" for kind, size in shape.target.items())
        raise ModelRefused(
            f"a {model.config['model_type']} model cannot be cut to {target}: its logits would differ by "
            f"{difference:.0%} from those with masks, as if norms subtracted the mean or embeddings were scaled by the "
            "hidden size: leave out hidden, or use width and depth"
        )
