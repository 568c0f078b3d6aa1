"""Sparsity per block by search: the levels that keep the predictions nearest to the dense model's.

The candidates are pruned on dense inputs. The stage then prunes again at the chosen levels, on the outputs of pruned
blocks, so a search that finds nothing changes nothing.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

import msgspec

from pruning.errors import RecipeError
from pruning.model.blocks import Blocks, weight_of
from pruning.passes.gradients import Moments
from pruning.recipe.allocation import Search
from pruning.recipe.options import Layerwise
from pruning.stages.context import StageContext, total_seconds
from pruning.stages.layerwise.allocation.evolution import Assignment, SearchState, evolve, read
from pruning.stages.layerwise.allocation.levels import AssignmentDivergence, PruneLevels
from pruning.techniques.technique import Technique

logger = logging.getLogger(__name__)

FILE = "search.json"
"""The journal of the search, in the stage's folder."""


class Allocation(NamedTuple):
    """The technique of each matrix."""

    techniques: Mapping[str, Technique]
    """The stage's technique with each matrix's own sparsity, by the name of the weight."""
    options: dict[str, Any]
    """The allocation's record in the lineage."""
    seconds: float


def search(stage: Layerwise, blocks: Blocks, context: StageContext, moments: Moments | None) -> Allocation:
    """Choose a level for each block; raises RecipeError if blocks differ in size, as their mean would not hold."""
    options = stage.allocation
    assert isinstance(options, Search)
    levels = options.ordered()
    start = (levels.index(stage.technique.sparsity),) * len(blocks)
    found = read(context.folder / FILE)
    if found is None or found.final is None:
        refuse_unequal(blocks)
        techniques = [msgspec.structs.replace(stage.technique, sparsity=level) for level in levels]
        found = _search(start, options, PruneLevels(techniques, context.folder / "levels", moments), blocks, context)
    shutil.rmtree(context.folder / "levels", ignore_errors=True)
    chosen = [levels[level] for level in (found.best if found.beats else start)]
    _say(found)
    record = msgspec.to_builtins(options) | {
        "levels": chosen,
        "kept": "searched" if found.beats else "uniform",
        "divergence": dict(zip(("uniform", "searched"), found.final or (), strict=True)),
    }
    techniques = [msgspec.structs.replace(stage.technique, sparsity=level) for level in chosen]
    return Allocation(of_every_matrix(techniques, blocks), {"allocation": record}, found.seconds)


def of_every_matrix(techniques: Sequence[Technique], blocks: Blocks) -> dict[str, Technique]:
    """The technique of each matrix, by the name of its weight, from that of each block."""
    return {name: technique for index, technique in enumerate(techniques) for name in blocks.linears(index)}


def _search(
    start: Assignment, options: Search, visit: PruneLevels, blocks: Blocks, context: StageContext
) -> SearchState:
    """Prune every block to every level, then search."""
    ids = context.inputs.calibration[0]
    count = ceil(options.tokens / ids.shape[1])
    parts = range(count), range(len(ids) - count, len(ids))
    apart = context._replace(folder=visit.folder)
    notes = apart.sweep(blocks).visit(visit, "pruning at every level", visit.runs)
    measure = AssignmentDivergence(blocks, ids, visit.folder)
    return evolve(start, options, measure, parts, context.folder / FILE, total_seconds(notes))


def _say(found: SearchState) -> None:
    """Log the result of the search."""
    uniform, best = found.final or (0.0, 0.0)
    verdict = "the best levels are used" if found.beats else "uniform sparsity is used, as nothing beat it"
    logger.info(
        "search: %.5f nats a token from the dense model with uniform sparsity, %.5f with the best levels, on unseen "
        "tokens: %s", uniform, best, verdict,
    )  # fmt: skip


def refuse_unequal(blocks: Blocks) -> None:
    """Raise RecipeError if blocks differ in size."""
    sizes = [
        sum(weight_of(linear).numel() for linear in blocks.linears(index).values()) for index in range(len(blocks))
    ]
    if len(set(sizes)) > 1:
        raise RecipeError(
            f"the blocks have between {min(sizes):,} and {max(sizes):,} weights, so unequal sparsities would not keep "
            "the mean: leave out allocation"
        )
