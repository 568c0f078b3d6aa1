"""Removes the blocks that change the hidden state least: block influence, in one dense pass over the data.

Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect,
https://arxiv.org/abs/2403.03853
"""

import re
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from pruning.calibration import BlockView, Note
from pruning.errors import ModelRefused, RecipeError
from pruning.recipe import Depth
from pruning.stage import Model, Place, seconds
from pruning.statistics import BlockInfluence
from pruning.weights import Renamed, Source, parameters
from server.checkpoint.lineage import Step

RUNS = 1
COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def apply(stage: Depth, model: Model, place: Place) -> tuple[Model, Step]:
    """Remove the blocks of least influence."""
    blocks = place.blocks(model)
    notes = place.sweep(blocks).visit(measure, "measuring blocks", RUNS)
    removed = least([note["influence"] for note in notes], stage.remove)
    source = without(model.source, blocks.path, removed, len(blocks))
    step = Step(
        technique="depth",
        options={"remove": stage.remove},
        sparsity={},
        seconds=seconds(notes),
        parameters=parameters(source)[0],
        removed_blocks=removed,
    )
    return Model(shortened(model.config, removed, len(blocks)), source), step


def measure(view: BlockView) -> Note:
    """A visit that notes the block's influence."""
    start = monotonic()
    influence = BlockInfluence()
    view.advance(influence.update)
    return {"influence": influence.value, "seconds": monotonic() - start}


def least(influences: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` blocks of least influence, in order; of equals the lower. Raises RecipeError if none would stay."""
    if count >= len(influences):
        raise RecipeError(f"remove = {count} would leave none of the model's {len(influences)} blocks")
    return tuple(sorted(sorted(range(len(influences)), key=influences.__getitem__)[:count]))


def without(source: Source, path: str, removed: Sequence[int], blocks: int) -> Renamed:
    """`source` without the `removed` of its `blocks` under `path`; those that stay are numbered anew."""
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
    return Renamed(source, names)


def shortened(config: Mapping[str, Any], removed: Sequence[int], blocks: int) -> dict[str, Any]:
    """`config` with its number of blocks, and every list of that length, cut; raises ModelRefused if it says none."""
    counts = [key for key in COUNT_KEYS if config.get(key) == blocks]
    if not counts:
        raise ModelRefused(f"config.json does not say that the model has {blocks} blocks, so none can be removed")
    result = dict(config)
    for key, value in config.items():
        if isinstance(value, list) and len(value) == blocks:
            result[key] = [item for index, item in enumerate(value) if index not in removed]
    return result | dict.fromkeys(counts, blocks - len(removed))
