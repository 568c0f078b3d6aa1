"""Says before any work which stage of a recipe would give weights that an earlier one rounds their 16 bits again."""

from collections.abc import Iterator, Sequence

import msgspec

from pruning.recipe.options import AWQ, Continue, Distill, Layerwise, Reconstruct, Round, Shear, Stage, Width
from pruning.techniques import GPTQ

BLOCKS, EMBEDDINGS = "blocks", "embeddings"
"""The linear layers of the blocks; the embeddings and the head."""


def lost(stages: Sequence[Stage]) -> Iterator[str]:
    """A sentence for each stage that undoes the rounding of one before it."""
    rounded: dict[str, str] = {}
    for number, stage in enumerate(stages):
        own = f"stage {number + 1}, {msgspec.to_builtins(stage)['kind']}"
        for what in sorted(written_by(stage) & rounded.keys()):
            yield f"{own}, gives the {what} their 16 bits again, which {rounded.pop(what)}, rounds: quantise last"
        rounded |= dict.fromkeys(rounded_by(stage), own)


def rounded_by(stage: Stage) -> set[str]:
    """What has codes and scales after `stage`, whatever it had before."""
    match stage:
        case AWQ() | Layerwise(technique=GPTQ()):
            return {BLOCKS}
        case Round():
            return {stage.what}
        case Distill() if stage.quantise:
            return {BLOCKS}
    return set()


def written_by(stage: Stage) -> set[str]:
    """What has 16 bits after `stage`, whatever it had before."""
    trained = {BLOCKS} - rounded_by(stage)
    match stage:
        case Layerwise() | Reconstruct() | Width():
            return trained
        case Shear():
            return {BLOCKS, EMBEDDINGS}
        case Continue() | Distill():
            return trained | ({EMBEDDINGS} if stage.embeddings else set())
    return set()
