"""The stage `depth`: removes whole blocks by block influence, by angular distance, or by perplexity trials.

Block influence, in one dense pass over the data: Men et al., ShortGPT: Layers in Large Language Models are More
Redundant Than You Expect, https://arxiv.org/abs/2403.03853
"""

import re
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from pruning.errors import ModelRefused, RecipeError
from pruning.model.blocks import Blocks
from pruning.model.weights import RenamedWeights, WeightSource, parameters
from pruning.passes.statistics import BlockInfluence
from pruning.passes.sweep import BlockView, Note
from pruning.recipe.options import Depth
from pruning.stages.context import StageContext, StageModel, blocks_without_weights, total_seconds
from pruning.stages.structured.angle import LastTokens, straightest
from pruning.stages.structured.trials import RemovalTrials
from server.artifact.checkpoint.lineage import Step

RUNS = 1
"""Forwards of each block per batch."""
COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""The keys of config.json that may hold the number of blocks."""


def apply(stage: Depth, model: StageModel, context: StageContext) -> tuple[StageModel, Step]:
    """Remove blocks by the stage's measure; returns the renumbered model. Raises RecipeError if none would remain."""
    blocks = context.blocks(model)
    refuse_all(stage.remove, len(blocks))
    removed, notes = CHOOSE[stage.by](stage, blocks, context)
    source = without(model.source, blocks.path, removed, len(blocks))
    result = StageModel(shortened(listed(model.config, blocks), removed, len(blocks)), source)
    prove(blocks, removed, context.blocks(result), context.check_ids)
    step = Step(
        technique="depth",
        options={"remove": stage.remove, "by": stage.by}
        | ({"sequences": stage.sequences} if stage.by == "perplexity" else {}),
        sparsity={},
        seconds=total_seconds(notes),
        parameters=parameters(source)[0],
        removed_blocks=removed,
    )
    return result, step


def check(stage: Depth, config: dict[str, Any], context: StageContext) -> dict[str, Any]:
    """The configuration afterwards, whichever blocks go; raises RecipeError if none would remain."""
    blocks = blocks_without_weights(config)
    refuse_all(stage.remove, len(blocks))
    return shortened(listed(config, blocks), range(stage.remove), len(blocks))


def _by_influence(stage: Depth, blocks: Blocks, context: StageContext) -> tuple[tuple[int, ...], list[Note]]:
    """The blocks of least influence."""
    notes = context.sweep(blocks).visit(measure, "measuring blocks", RUNS)
    return least([note["influence"] for note in notes], stage.remove), notes


def _by_angle(stage: Depth, blocks: Blocks, context: StageContext) -> tuple[tuple[int, ...], list[Note]]:
    """The consecutive blocks that turn the last token's state least."""
    visit = LastTokens(context.folder)
    notes = context.sweep(blocks).visit(visit, "measuring angles", visit.runs)
    return straightest(visit.states(len(blocks)), stage.remove), notes


def _by_perplexity(stage: Depth, blocks: Blocks, context: StageContext) -> tuple[tuple[int, ...], list[Note]]:
    """One block at a time, each the one whose removal raises the calibration perplexity least."""
    notes = RemovalTrials(blocks, context.inputs.calibration[0][: stage.sequences], context.folder).remove(stage.remove)
    return tuple(sorted(note["block"] for note in notes)), notes


CHOOSE: dict[str, Callable[[Depth, Blocks, StageContext], tuple[tuple[int, ...], list[Note]]]] = {
    "influence": _by_influence,
    "angle": _by_angle,
    "perplexity": _by_perplexity,
}
"""Chooses the blocks to remove, by the stage's `by`; returns their numbers and notes with the seconds."""


def measure(view: BlockView) -> Note:
    """A visit that notes the block's influence and the seconds."""
    start = monotonic()
    influence = BlockInfluence()
    view.advance(influence.update)
    return {"influence": influence.value, "seconds": monotonic() - start}


def least(influences: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` blocks of least influence, in order; the lower number of equals."""
    return tuple(sorted(sorted(range(len(influences)), key=influences.__getitem__)[:count]))


def refuse_all(count: int, blocks: int) -> None:
    """Raise RecipeError if removing `count` of `blocks` blocks would leave none."""
    if count >= blocks:
        raise RecipeError(f"remove = {count} would leave none of the model's {blocks} blocks")


def prove(blocks: Blocks, removed: Sequence[int], left: Blocks, ids: Tensor) -> None:
    """Check on `ids` [2, tokens] that the blocks `left` compute what they did in `blocks`; raises ModelRefused.

    An architecture may derive behaviour from a block's number, which no list in its configuration shows.
    """
    (before, calls), (after, own) = blocks.capture(ids), left.capture(ids)
    kept = [index for index in range(len(blocks)) if index not in removed]
    for number, index in enumerate(kept):
        with blocks.loaded(index):
            before = blocks.run(index, before, calls[index])
        with left.loaded(number):
            after = left.run(number, after, own[number])
        if not torch.equal(before, after):
            raise ModelRefused(
                f"{blocks.path}.{index} computes something else as block {number}, so no block before it can be removed"
            )


def without(source: WeightSource, path: str, removed: Sequence[int], blocks: int) -> RenamedWeights:
    """`source` without the `removed` of its `blocks` under `path`; the remaining ones are renumbered."""
    kept = [index for index in range(blocks) if index not in removed]
    number = {old: new for new, old in enumerate(kept)}
    pattern = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    names = {}
    for name in source.names():
        match = pattern.match(name)
        if match is None:
            names[name] = name
        elif int(match[1]) in number:
            names[f"{path}.{number[int(match[1])]}.{name[match.end() :]}"] = name
    return RenamedWeights(source, names)


def listed(config: Mapping[str, Any], blocks: Blocks) -> dict[str, Any]:
    """`config` with the per-block lists that transformers derives if config.json has none.

    Gemma 2 gives each second block a sliding window, for instance, by its number, which removing earlier blocks
    changes.
    """
    settings = getattr(blocks.model, "config", None)
    derived: Mapping[str, Any] = settings.to_dict() if settings is not None else {}
    lists = {key: value for key, value in derived.items() if isinstance(value, list) and len(value) == len(blocks)}
    return {**config, **{key: value for key, value in lists.items() if config.get(key) is None}}


def shortened(config: Mapping[str, Any], removed: Sequence[int], blocks: int) -> dict[str, Any]:
    """`config` with the block count and all per-block lists shortened; raises ModelRefused if it has no block count."""
    counts = [key for key in COUNT_KEYS if config.get(key) == blocks]
    if not counts:
        raise ModelRefused(f"config.json does not state the number of blocks, {blocks}, so none can be removed")
    result = dict(config)
    for key, value in config.items():
        if isinstance(value, list) and len(value) == blocks:
            result[key] = [item for index, item in enumerate(value) if index not in removed]
    return result | dict.fromkeys(counts, blocks - len(removed))
