"""How much each block loses, by search: the levels that leave the model's predictions nearest to the dense model's.

The blocks that are compared were pruned on dense inputs. The pass that follows prunes anew at the levels found, on what
pruned blocks give, so that a search that finds nothing changes nothing.
"""

import logging
import shutil
from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import msgspec

from pruning.errors import RecipeError
from pruning.model.blocks import Blocks, weight_of
from pruning.passes.gradients import Moments
from pruning.recipe.allocation import Search
from pruning.recipe.options import Layerwise
from pruning.stages.context import Place, seconds
from pruning.stages.layerwise.allocation.evolution import Evolution, Mixture, evolve, read
from pruning.stages.layerwise.allocation.levels import Divergence, PruneLevels
from pruning.techniques.technique import Technique

logger = logging.getLogger(__name__)

FILE = "search.json"


class Allocation(NamedTuple):
    """How much each block loses."""

    techniques: Sequence[Technique]
    """The technique with the sparsity of each block."""
    options: dict[str, Any]
    """What the lineage says of it."""
    seconds: float


def search(stage: Layerwise, blocks: Blocks, place: Place, moments: Moments | None) -> Allocation:
    """Choose a level for each block; raises RecipeError where blocks differ in size, as their mean would not stay."""
    options = stage.allocation
    assert isinstance(options, Search)
    levels = options.ordered()
    start = (levels.index(stage.technique.sparsity),) * len(blocks)
    found = read(place.folder / FILE)
    if found is None or found.final is None:
        refuse_unequal(blocks)
        techniques = [msgspec.structs.replace(stage.technique, sparsity=level) for level in levels]
        found = _search(start, options, PruneLevels(techniques, place.folder / "levels", moments), blocks, place)
    shutil.rmtree(place.folder / "levels", ignore_errors=True)
    chosen = [levels[level] for level in (found.best if found.beats else start)]
    _say(found)
    record = msgspec.to_builtins(options) | {
        "levels": chosen,
        "kept": "searched" if found.beats else "uniform",
        "divergence": dict(zip(("uniform", "searched"), found.final or (), strict=True)),
    }
    techniques = [msgspec.structs.replace(stage.technique, sparsity=level) for level in chosen]
    return Allocation(techniques, {"allocation": record}, found.seconds)


def _search(start: Mixture, options: Search, visit: PruneLevels, blocks: Blocks, place: Place) -> Evolution:
    """Prune every block to every level, then search."""
    ids = place.inputs.calibration[0]
    count = ceil(options.tokens / ids.shape[1])
    parts = range(count), range(len(ids) - count, len(ids))
    apart = place._replace(folder=visit.folder)
    notes = apart.sweep(blocks).visit(visit, "pruning at every level", visit.runs)
    measure = Divergence(blocks, ids, visit.folder)
    return evolve(start, options, measure, parts, place.folder / FILE, seconds(notes))


def _say(found: Evolution) -> None:
    """Log what came of the search."""
    uniform, best = found.final or (0.0, 0.0)
    verdict = "its levels are taken" if found.beats else "nothing beat the same sparsity for all, which stays"
    logger.info(
        "search: %.5f nats a token from the dense model with the same sparsity for all, %.5f with the best levels, on "
        "tokens that the search never saw: %s", uniform, best, verdict,
    )  # fmt: skip


def refuse_unequal(blocks: Blocks) -> None:
    """Raise RecipeError where blocks differ in size."""
    sizes = [
        sum(weight_of(linear).numel() for linear in blocks.linears(index).values()) for index in range(len(blocks))
    ]
    if len(set(sizes)) > 1:
        raise RecipeError(
            f"the blocks have from {min(sizes):,} to {max(sizes):,} weights, so what one loses less than another would "
            "change the size: leave out allocation"
        )
