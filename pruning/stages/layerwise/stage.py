"""The stage `layerwise`: chooses how much each block loses, then prunes them one after another with one technique."""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from pruning.errors import RecipeError
from pruning.model.blocks import Blocks, weight_of
from pruning.model.weights import Overlay, parameters
from pruning.passes.gradients import Moments
from pruning.passes.observation import count_groups
from pruning.passes.statistics import Gram
from pruning.passes.sweep import FollowingSweep
from pruning.recipe.allocation import OWL, Search
from pruning.recipe.options import Layerwise
from pruning.stages.context import Model, Place, seconds, unloaded
from pruning.stages.layerwise.allocation.owl import Outliers, allocate
from pruning.stages.layerwise.allocation.search import Allocation, refuse_unequal, search
from pruning.stages.layerwise.correction import Correction
from pruning.stages.layerwise.prune import PruneBlock, block_file, losses_in
from pruning.techniques.mathematics.patterns import groups_of
from server.artifact.checkpoint.lineage import Step

logger = logging.getLogger(__name__)

STRONG = 0.5
"""Corrections above this lost more than they gained wherever they were measured (docs/results/log.md)."""
TOKENS_PER_COLUMN = 6
"""With fewer, Gram matrices are near singular and masks change with the rounding (docs/results/log.md)."""


def apply(stage: Layerwise, model: Model, place: Place) -> tuple[Model, Step]:
    """Prune every linear layer of every block; the pruned weights lie over the model's source."""
    blocks = place.blocks(model)
    groups = count_groups(blocks, place.inputs.calibration[0][:1]) if stage.order == "sequential" else 1
    if Gram in stage.technique.needs or stage.correction:
        warn_of_few_tokens(blocks, place.inputs.calibration[0].numel())
    moments = place.moments(blocks, stage.technique.moments) if stage.technique.moments else None
    chosen = CHOOSE[type(stage.allocation)](stage, blocks, place, moments)
    visit = PruneBlock(
        stage.technique, place.folder, groups, chosen.techniques, moments, _correction(stage, model, place)
    )
    notes = place.sweep(blocks).visit(visit, "pruning", visit.runs)
    source = Overlay(model.source, [block_file(place.folder, index) for index in range(len(blocks))])
    options = msgspec.to_builtins(stage.technique) | chosen.options
    if stage.correction:
        options["correction"] = stage.correction
    if stage.order != "block":
        options["order"] = stage.order
    step = Step(
        technique=options.pop("name"),
        options=options,
        sparsity={name: value for note in notes for name, value in note["sparsity"].items()},
        seconds=round(seconds(notes) + chosen.seconds + (moments.seconds if moments else 0), 1),
        parameters=parameters(source)[0],
        losses=losses_in(notes),
    )
    return Model(model.config, source), step


def _correction(stage: Layerwise, model: Model, place: Place) -> Correction | None:
    """What moves the weights before they are pruned, beside `model` as it is."""
    if not stage.correction:
        return None
    if stage.correction > STRONG:
        logger.warning("correction = %g is likely to overfit: compare the result with %g", stage.correction, STRONG)
    inputs = place.inputs
    originals = FollowingSweep(
        place.blocks(model), inputs.calibration[0], inputs.recipe.calibration.batch, place.folder / "unpruned"
    )
    return Correction(stage.correction, originals, sequential=stage.order == "sequential")


def check(stage: Layerwise, config: dict[str, Any], place: Place) -> dict[str, Any]:
    """The configuration, which stays; raises RecipeError where the inputs of a layer are no whole number of N:M groups.

    Groups that share a scale may end in a shorter one, which every layout stores.
    """
    levels = stage.allocation.levels if isinstance(stage.allocation, Search) else ()
    patterns = {level: groups for level in (stage.technique.sparsity, *levels) if (groups := groups_of(level))}
    if not patterns:
        return config
    blocks = unloaded(config)
    for name, linear in (item for index in range(len(blocks)) for item in blocks.linears(index).items()):
        columns = weight_of(linear).shape[1]
        for level, groups in patterns.items():
            if columns % groups.columns:
                raise RecipeError(
                    f'"{level}" asks for whole groups of {groups.columns} columns, but {name} has {columns} inputs: '
                    "choose groups of a size that divides them, or a fraction such as 0.5"
                )
    return config


def warn_of_few_tokens(blocks: Blocks, tokens: int) -> None:
    """Log where `tokens` are too few for the Gram matrix of the block's widest input to be well conditioned."""
    columns, name = max((weight_of(linear).shape[1], name) for name, linear in blocks.linears(0).items())
    if tokens < TOKENS_PER_COLUMN * columns:
        logger.warning(
            "%d tokens of calibration are few for the %d inputs of %s: %d or more give a steadier result",
            tokens, columns, name, TOKENS_PER_COLUMN * columns,
        )  # fmt: skip


def _uniform(stage: Layerwise, blocks: Blocks, place: Place, moments: Moments | None) -> Allocation:
    """The same for all blocks."""
    return Allocation([stage.technique] * len(blocks), {}, 0.0)


def _owl(stage: Layerwise, blocks: Blocks, place: Place, moments: Moments | None) -> Allocation:
    """Less for blocks with more outliers."""
    assert isinstance(stage.allocation, OWL)
    refuse_unequal(blocks)
    apart = place._replace(folder=place.folder / "outliers")
    notes = apart.sweep(blocks).visit(Outliers(stage.allocation.outliers), "measuring outliers", 1)
    fractions = allocate([note["outliers"] for note in notes], float(stage.technique.sparsity), stage.allocation.spread)
    techniques = [msgspec.structs.replace(stage.technique, sparsity=fraction) for fraction in fractions]
    record = msgspec.to_builtins(stage.allocation) | {"levels": fractions}
    return Allocation(techniques, {"allocation": record}, seconds(notes))


CHOOSE: dict[type[Any], Callable[[Layerwise, Blocks, Place, Moments | None], Allocation]] = {
    type(None): _uniform,
    OWL: _owl,
    Search: search,
}
"""What decides how much each block loses."""
