"""Shears a model: trains weights and masks together with the language model's loss, then cuts out what the masks drop.

Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, section 2.1. Differs from the official code in that heads
go by whole KV groups, and in where hidden dimensions are masked (see `sheared`). The whole model is in memory with its
gradients and moments. An architecture that normalises what a block writes feels a layer's mask only at 0.
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
from pruning.recipe.options import Shear
from pruning.stages.context import Model, Place, unloaded
from pruning.stages.structured.body import Shape, find_body
from pruning.stages.structured.depth import listed
from pruning.stages.training.journal import State
from pruning.stages.training.network import Precision, language_loss, load, logits, parameters_in_blocks
from pruning.stages.training.run import (
    LETTERS,
    Effort,
    Outcome,
    Run,
    Setting,
    identity,
    language_score,
    recovery,
    step_of,
)
from pruning.stages.training.shear.sheared import Hooks, Masks, Sheared, cut_by, decided
from pruning.stages.training.text import Lessons, draw, refuse_scarce
from server.artifact.checkpoint.lineage import Step

logger = logging.getLogger(__name__)

MEASURE = "mean negative log-likelihood of a held-out token, nats"
TOLERANCE = 1e-3
"""Of logits, relative to the largest: what a cut model may differ from the masked one, in float32."""


def apply(stage: Shear, model: Model, place: Place) -> tuple[Model, Step]:
    """Learn what stays and cut; raises before any work where the target does not fit or the model cannot be cut."""
    blocks = place.blocks(model)
    shape = _shape(stage, model.config, blocks)
    shape.check(blocks.model)
    lessons, setting = draw(stage, place.inputs), Setting.of(place)
    state = setting.journal.state(identity(setting.precision, lessons))
    if state.step < stage.steps:
        prove(model, shape, place.checked)
    shear = Shearing(stage, setting.load(model), shape, lessons, setting)
    state = shear.run(state)
    _refuse_diverged(state)
    result, removed = shear.result(place.folder / "sheared.safetensors")
    effort = Effort(
        flops=6.0 * parameters_in_blocks(model) * lessons.training.numel(),
        formula=f"6 N T (before the cut); {LETTERS}",
        precision=setting.precision.name,
        measure=MEASURE,
    )
    outcome = Outcome(state.scores[0][1], state.scores[-1][1], rolled_back=False)
    logger.info("%s: %.4f whole, %.4f in its new shape", MEASURE, outcome.before, outcome.after)
    step = step_of(stage, result, state.seconds, recovery(stage, lessons, effort, outcome))
    return result, msgspec.structs.replace(step, removed_blocks=removed)


def _refuse_diverged(state: State) -> None:
    """Raise RecipeError where training ends with a loss that is not finite: there is nothing to go back to."""
    if state.scores[-1][1] == WORST:
        raise RecipeError("shearing diverged, its held-out loss is not finite: choose a lower learning_rate")


def check(stage: Shear, config: dict[str, Any], place: Place) -> dict[str, Any]:
    """The configuration afterwards, whatever stays; raises before any work where target or texts do not suit."""
    blocks = unloaded(config)
    after = _shape(stage, config, blocks).check(blocks.model)
    refuse_scarce(stage, place.inputs)
    return after


def _shape(stage: Shear, config: dict[str, Any], blocks: Blocks) -> Shape:
    """What the model of `blocks` is cut to."""
    config = listed(config, blocks) if stage.layers else config
    return Shape(config, find_body(blocks, stage.plan, config), stage.target)


class Shearing(Run):
    """One run; each score but the first, which is the whole model's, is of the model that would be cut at that step."""

    doing = "shearing"

    def __init__(self, stage: Shear, network: nn.Module, shape: Shape, lessons: Lessons, setting: Setting) -> None:
        self._masks = Masks(shape, stage.seed, setting.precision.device)
        self._sheared = Sheared(network, shape, self._masks, stage.mask_learning_rate)
        super().__init__(stage, self._sheared, setting)
        self._hooks = Hooks(network, shape.body)
        self._lessons = lessons
        self._warmup = ceil(stage.target_warmup * stage.steps)

    def result(self, file: Path) -> tuple[Model, tuple[int, ...]]:
        """Write the model that is left to `file`; returns it, and the blocks that were taken out."""
        left, removed = self._sheared.cut()
        if self._team.leads:
            write_file(file, {name: left.source.tensor(name) for name in left.source.names()})
        self._team.wait()
        return Model(left.config, Shards([file])), removed

    def _begin(self) -> None:
        self._hooks.use({})
        self._score(0, self._student.network)

    def _train(self, step: int) -> None:
        self._hooks.use(self._masks.sample(step))
        ids = self._team.part(self._lessons.batch(step, self._stage.batch))
        loss = language_loss(self._student.network, ids, self._precision)
        self._optimiser.step(loss + self._masks.penalty(step, self._warmup), step)

    def _store(self, step: int) -> None:
        """Nothing: the last step counts, not the best, as the masks come to the target only then."""

    def _judge(self, network: nn.Module) -> float:
        return language_score(network, self._lessons.held_out, self._stage.batch, self._setting)


@torch.no_grad()
def prove(model: Model, shape: Shape, ids: Tensor) -> None:
    """Show on `ids` [2, tokens], with random masks, that cutting gives the masked model, or raise ModelRefused."""
    exact = Precision(torch.float32, "")
    network = load(model, exact.dtype)
    generator = torch.Generator().manual_seed(0)
    noise = {kind: torch.randn(shape.body.per_layer(kind), generator=generator) for kind in shape.target}
    masks = decided(shape, noise)
    left, _ = cut_by(masks, shape, network, dict(network.named_parameters()))
    Hooks(network, shape.body).use(masks)
    expected = logits(network, ids, exact)
    given = logits(load(left, exact.dtype), ids, exact)
    difference = ((given - expected).abs().max() / expected.abs().max()).item()
    if not difference < TOLERANCE:
        target = ", ".join(f"{kind} = {size}" for kind, size in shape.target.items())
        raise ModelRefused(
            f"a {model.config['model_type']} model cannot be cut to {target}: its logits would be {difference:.0%} off "
            "those with masks, as where norms subtract the mean or embeddings are scaled by the hidden size; leave out "
            "hidden, or use width and depth"
        )
