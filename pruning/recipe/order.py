"""Warns, before any work, when a stage would undo an earlier quantisation, and refuses what would undo pruning."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pruning.recipe.options import AWQ, Layerwise, Round, Stage, Vocabulary, Width
from pruning.recipe.training import Continue, Distill, Reconstruct, Shear
from pruning.techniques import GPTQ

BLOCKS, EMBEDDINGS = "blocks", "embeddings"
"""The linear layers of the blocks; the embeddings and the head."""


def undone_quantisations(stages: Sequence[Stage]) -> Iterator[str]:
    """A sentence for each stage that undoes an earlier quantisation."""
    quantised: dict[str, str] = {}
    for number, stage in enumerate(stages):
        own = f"stage {number + 1}, {msgspec.to_builtins(stage)['kind']}"
        for what in sorted(unquantised_by(stage) & quantised.keys()):
            yield f"{own}, returns the {what} to 16 bits, which {quantised.pop(what)}, quantised: quantise last"
        quantised |= dict.fromkeys(quantised_by(stage), own)


def refuse_lost_zeros(stages: Sequence[Stage]) -> None:
    """Raise ValueError for asymmetric codes of the blocks after a stage that pruned them: no code is zero."""
    pruned = False
    for number, stage in enumerate(stages):
        options: dict[str, Any] = msgspec.to_builtins(stage)
        kind = options["kind"]
        options |= options.get("technique") or {}
        options |= quantise if isinstance(quantise := options.get("quantise"), dict) else {}
        if pruned and options.get("scheme") == "asymmetric" and BLOCKS in quantised_by(stage):
            raise ValueError(
                f"stage {number + 1}, {kind}, has asymmetric codes, among which pruned weights would not stay zero: "
                'use scheme = "symmetric" after pruning'
            )
        pruned = pruned or (isinstance(stage, Layerwise) and options.get("sparsity") != 0)


def refuse_nothing_kept(stages: Sequence[Stage], found: str | None) -> None:
    """Raise ValueError for a stage that keeps the codes of blocks at 16 bits; `found` says that the base has none."""
    undone = found
    for number, stage in enumerate(stages):
        own = f"stage {number + 1}, {msgspec.to_builtins(stage)['kind']}"
        if undone and isinstance(stage, Distill) and stage.quantise == "kept":
            raise ValueError(
                f'{own}, has quantise = "kept", but {undone} leaves the blocks at 16 bits: quantise them in between, '
                "by gptq, awq or round, or give the bits, as in quantise = { bits = 4, group = 32 }"
            )
        if BLOCKS in quantised_by(stage):
            undone = None
        elif BLOCKS in unquantised_by(stage):
            undone = f"{own},"


def quantised_by(stage: Stage) -> set[str]:
    """The groups of weights, such as `blocks`, that `stage` leaves quantised."""
    match stage:
        case AWQ() | Layerwise(technique=GPTQ()):
            return {BLOCKS}
        case Round():
            return {stage.what}
        case Distill() if stage.quantise:
            return {BLOCKS}
    return set()


def unquantised_by(stage: Stage) -> set[str]:
    """The groups of weights that `stage` leaves at 16 bits, even if they were quantised before."""
    trained = {BLOCKS} - quantised_by(stage)
    match stage:
        case Layerwise() | Reconstruct() | Width():
            return trained
        case Shear():
            return {BLOCKS, EMBEDDINGS}
        case Vocabulary() if stage.fit:
            return {EMBEDDINGS} | (trained if stage.fit.weights == "all" else set())
        case Continue() | Distill():
            return trained | ({EMBEDDINGS} if stage.embeddings else set())
    return set()
