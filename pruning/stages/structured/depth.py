"""Removes whole blocks: those of least influence, the run that turns the state least, or by trial.

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
from pruning.stages.context import Model, Place, seconds, unloaded
from pruning.stages.structured.angle import LastTokens, straightest
from pruning.stages.structured.trials import Trials
from server.artifact.checkpoint.lineage import Step

RUNS = 1
COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def apply(stage: Depth, model: Model, place: Place) -> tuple[Model, Step]:
    """Remove blocks by the stage's measure; raises RecipeError before any work if none would stay."""
    blocks = place.blocks(model)
    refuse_all(stage.remove, len(blocks))
    removed, notes = CHOOSE[stage.by](stage, blocks, place)
    source = without(model.source, blocks.path, removed, len(blocks))
    result = Model(shortened(listed(model.config, blocks), removed, len(blocks)), source)
    prove(blocks, removed, place.blocks(result), place.checked)
    step = Step(
        technique="depth",
        options={"remove": stage.remove, "by": stage.by}
        | ({"sequences": stage.sequences} if stage.by == "perplexity" else {}),
        sparsity={},
        seconds=seconds(notes),
        parameters=parameters(source)[0],
        removed_blocks=removed,
    )
    return result, step


def check(stage: Depth, config: dict[str, Any], place: Place) -> dict[str, Any]:
    """The configuration afterwards, whichever blocks go; raises before any work where none would stay."""
    blocks = unloaded(config)
    refuse_all(stage.remove, len(blocks))
    return shortened(listed(config, blocks), range(stage.remove), len(blocks))


def _by_influence(stage: Depth, blocks: Blocks, place: Place) -> tuple[tuple[int, ...], list[Note]]:
    """The blocks of least influence."""
    notes = place.sweep(blocks).visit(measure, "measuring blocks", RUNS)
    return least([note["influence"] for note in notes], stage.remove), notes


def _by_angle(stage: Depth, blocks: Blocks, place: Place) -> tuple[tuple[int, ...], list[Note]]:
    """The run of blocks that turns the last token's state least."""
    visit = LastTokens(place.folder)
    notes = place.sweep(blocks).visit(visit, "measuring angles", visit.runs)
    return straightest(visit.states(len(blocks)), stage.remove), notes


def _by_perplexity(stage: Depth, blocks: Blocks, place: Place) -> tuple[tuple[int, ...], list[Note]]:
    """One block after another, each time the one that the perplexity of the calibration text misses least."""
    notes = Trials(blocks, place.inputs.calibration[0][: stage.sequences], place.folder).remove(stage.remove)
    return tuple(sorted(note["block"] for note in notes)), notes


CHOOSE: dict[str, Callable[[Depth, Blocks, Place], tuple[tuple[int, ...], list[Note]]]] = {
    "influence": _by_influence,
    "angle": _by_angle,
    "perplexity": _by_perplexity,
}
"""What chooses the blocks, and notes the seconds."""


def measure(view: BlockView) -> Note:
    """A visit that notes the block's influence."""
    start = monotonic()
    influence = BlockInfluence()
    view.advance(influence.update)
    return {"influence": influence.value, "seconds": monotonic() - start}


def least(influences: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` blocks of least influence, in order; of equals the lower."""
    return tuple(sorted(sorted(range(len(influences)), key=influences.__getitem__)[:count]))


def refuse_all(count: int, blocks: int) -> None:
    """Raise RecipeError if removing `count` of the `blocks` would leave none."""
    if count >= blocks:
        raise RecipeError(f"remove = {count} would leave none of the model's {blocks} blocks")


def prove(blocks: Blocks, removed: Sequence[int], left: Blocks, ids: Tensor) -> None:
    """Show on `ids` [2, T] that what is `left` of `blocks` does what it did before; raises ModelRefused.

    A model may also have a block do by its number what no list in its configuration says.
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
                f"{blocks.path}.{index} would give another result as number {number}, so blocks before it cannot go"
            )


def without(source: WeightSource, path: str, removed: Sequence[int], blocks: int) -> RenamedWeights:
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
    return RenamedWeights(source, names)


def listed(config: Mapping[str, Any], blocks: Blocks) -> dict[str, Any]:
    """`config` with every list of one value a block that transformers derives where it names none.

    Gemma 2 gives each second block a window, for instance: by its number, which changes once blocks before it are gone.
    """
    settings = getattr(blocks.model, "config", None)
    derived: Mapping[str, Any] = settings.to_dict() if settings is not None else {}
    lists = {key: value for key, value in derived.items() if isinstance(value, list) and len(value) == len(blocks)}
    return {**config, **{key: value for key, value in lists.items() if config.get(key) is None}}


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
