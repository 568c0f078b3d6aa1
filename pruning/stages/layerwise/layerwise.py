"""The stage `layerwise`: sets the sparsity of each matrix, then prunes block after block with one technique."""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from pruning.errors import RecipeError
from pruning.model.blocks import Blocks, weight_of
from pruning.model.weights import Overlay, parameters
from pruning.passes.fisher import output_fishers
from pruning.passes.gradients import Moments
from pruning.passes.observation import count_groups
from pruning.passes.statistics import Gram
from pruning.passes.sweep import FollowingSweep
from pruning.recipe.allocation import OWL, Fisher, Search
from pruning.recipe.options import Layerwise
from pruning.stages.block_weights import block_file, losses_in
from pruning.stages.context import StageContext, StageModel, blocks_without_weights, total_seconds
from pruning.stages.layerwise.allocation.fisher import fisher
from pruning.stages.layerwise.allocation.owl import MeasureOutliers, owl_sparsities
from pruning.stages.layerwise.allocation.search import Allocation, of_every_matrix, refuse_unequal, search
from pruning.stages.layerwise.correction import Correction
from pruning.stages.layerwise.prune_block import Gradients, PruneBlock
from pruning.techniques.mathematics.sparsity import nm_pattern
from server.artifact.checkpoint.lineage import Step
from server.storage.files import write_atomically

logger = logging.getLogger(__name__)

STRONG = 0.5
"""Corrections above this overfit in every measurement (docs/results/log.md)."""
TOKENS_PER_COLUMN = 6
"""With fewer tokens, Gram matrices are near singular and masks depend on rounding (docs/results/log.md)."""


def apply(stage: Layerwise, model: StageModel, context: StageContext) -> tuple[StageModel, Step]:
    """Prune every linear layer of every block; the pruned weights overlay the model's weights.

    Journals each block's sparsity, losses and seconds, and writes one file of weights per block. The processes of a
    team share out the sequences; sums over them are rounded otherwise than those of one process.
    """
    check_processes(context)
    blocks = context.blocks(model)
    groups = count_groups(blocks, context.inputs.calibration[0][:1]) if stage.order == "sequential" else 1
    if context.team.leads and (Gram in stage.technique.needs or stage.correction):
        warn_of_few_tokens(blocks, context.inputs.calibration[0].numel())
    with context.team.first():  # the others read what the first has journalled
        gradients = _gradients(stage, blocks, context)
        chosen = CHOOSE[type(stage.allocation)](stage, blocks, context, gradients.moments)
    correction = _correction(stage, model, context)
    visit = PruneBlock(stage.technique, context.folder, groups, chosen.techniques, gradients, correction)
    visit.team = context.team
    notes = context.shared_sweep(blocks).visit(visit, "pruning", visit.runs)
    context.team.wait()  # for the last block's file
    source = Overlay(model.source, [block_file(context.folder, index) for index in range(len(blocks))])
    options = msgspec.to_builtins(stage.technique) | chosen.options
    if stage.correction:
        options["correction"] = stage.correction
    if stage.order != "block":
        options["order"] = stage.order
    if stage.objective != "layer":
        options["objective"] = stage.objective
    step = Step(
        technique=options.pop("name"),
        options=options,
        sparsity={name: value for note in notes for name, value in note["sparsity"].items()},
        seconds=round(total_seconds(notes) + chosen.seconds + gradients.seconds, 1),
        parameters=parameters(source)[0],
        losses=losses_in(notes),
    )
    return StageModel(model.config, source), step


def _gradients(stage: Layerwise, blocks: Blocks, context: StageContext) -> Gradients:
    """What the technique and the objective need of a backward pass."""
    moments = context.moments(blocks, stage.technique.moments) if stage.technique.moments else None
    if stage.objective == "layer":
        return Gradients(moments)
    ids = context.inputs.calibration[0][: stage.objective_sequences]
    return Gradients(moments, output_fishers(blocks, ids, context.folder / "objective"))


def _correction(stage: Layerwise, model: StageModel, context: StageContext) -> Correction | None:
    """The correction of weights before pruning, which runs `model` unpruned alongside; None if the stage has none."""
    if not stage.correction:
        return None
    if stage.correction > STRONG:
        logger.warning("correction = %g is likely to overfit: compare the result with %g", stage.correction, STRONG)
    originals = FollowingSweep(
        context.blocks(model),
        context.shared_ids,
        context.inputs.recipe.calibration.batch,
        context.own_folder / "unpruned",
    )
    return Correction(stage.correction, originals, sequential=stage.order == "sequential")


def check_processes(context: StageContext) -> None:
    """Raise RecipeError unless the stage was begun with as many processes as share out its sequences now."""
    count, sequences = context.team.size, len(context.inputs.calibration[0])
    if count > sequences:
        raise RecipeError(f"{count} processes cannot share out {sequences} sequences: start {sequences} at most")
    with context.team.first():
        context.folder.mkdir(parents=True, exist_ok=True)
        file = context.folder / "processes"
        begun = int(file.read_text()) if file.exists() else 1 if (context.folder / "journal.json").exists() else count
        if begun != count:
            raise RecipeError(
                f"this run was begun with --processes {begun}, and sums over {count} would be rounded otherwise: "
                f"give --processes {begun}, or another --output to start anew"
            )
        if context.team.leads:
            write_atomically(file, str(count).encode())


def check(stage: Layerwise, config: dict[str, Any], context: StageContext) -> dict[str, Any]:
    """The unchanged configuration; raises RecipeError if N:M groups do not divide the inputs of every layer.

    Quantisation groups need not divide them: every storage layout allows a shorter last group.
    """
    patterns = {level: groups for level in stage.sparsities if (groups := nm_pattern(level))}
    if not patterns:
        return config
    blocks = blocks_without_weights(config)
    for name, linear in (item for index in range(len(blocks)) for item in blocks.linears(index).items()):
        columns = weight_of(linear).shape[1]
        for level, groups in patterns.items():
            if columns % groups.columns:
                raise RecipeError(
                    f'"{level}" needs whole groups of {groups.columns} columns, but {name} has {columns} inputs: '
                    "choose a group size that divides them, or a fraction such as 0.5"
                )
    return config


def warn_of_few_tokens(blocks: Blocks, tokens: int) -> None:
    """Warn if `tokens` are too few for a well-conditioned Gram matrix of the block's widest input."""
    columns, name = max((weight_of(linear).shape[1], name) for name, linear in blocks.linears(0).items())
    if tokens < TOKENS_PER_COLUMN * columns:
        logger.warning(
            "%d calibration tokens are few for the %d inputs of %s: %d or more give a more stable result",
            tokens, columns, name, TOKENS_PER_COLUMN * columns,
        )  # fmt: skip


def _uniform(stage: Layerwise, blocks: Blocks, context: StageContext, moments: Moments | None) -> Allocation:
    """Uniform sparsity."""
    return Allocation({}, {}, 0.0)


def _owl(stage: Layerwise, blocks: Blocks, context: StageContext, moments: Moments | None) -> Allocation:
    """Lower sparsity for blocks with more outliers (OWL)."""
    assert isinstance(stage.allocation, OWL)
    refuse_unequal(blocks)
    apart = context._replace(folder=context.folder / "outliers")
    notes = apart.sweep(blocks).visit(MeasureOutliers(stage.allocation.outliers), "measuring outliers", 1)
    fractions = owl_sparsities(
        [note["outliers"] for note in notes], float(stage.technique.sparsity), stage.allocation.spread
    )
    techniques = [msgspec.structs.replace(stage.technique, sparsity=fraction) for fraction in fractions]
    record = msgspec.to_builtins(stage.allocation) | {"levels": fractions}
    return Allocation(of_every_matrix(techniques, blocks), {"allocation": record}, total_seconds(notes))


CHOOSE: dict[type[Any], Callable[[Layerwise, Blocks, StageContext, Moments | None], Allocation]] = {
    type(None): _uniform,
    OWL: _owl,
    Search: search,
    Fisher: fisher,
}
"""The function that sets the sparsity of each matrix, by the type of `allocation`."""
