"""Estimates of the memory and disk that a recipe takes, from the size of its base."""

from collections.abc import Iterator
from pathlib import Path

from pruning.model.outline import Outline
from pruning.recipe.options import Stage, Vocabulary
from pruning.recipe.recipe import Recipe
from pruning.recipe.training import Continue, Distill, Shear

GIGABYTE = 1e9
STORED = 2
"""Bytes of a weight at 16 bits."""
TRAINED = 30
"""Bytes of a weight while the whole model is trained at full precision, with the base beside it (recipe reference)."""
TRAINED_LITTLE = 8
"""Likewise with `memory = "little"`."""
LEAST = 1e9
"""Bytes of torch and the interpreter."""


def memory_needed(recipe: Recipe, base: Outline) -> float:
    """Bytes of the import or of the most expensive stage; without activations, which depend on batch and length."""
    return LEAST + base.parameters * max([STORED, *map(_bytes, recipe.stages)])


def disk_needed(recipe: Recipe, base: Outline, output: Path, cache: Path) -> Iterator[tuple[str, Path, float]]:
    """What is written, where, and the most bytes of it: the imported base, and each stage's result until the end."""
    yield "imported base", cache, base.parameters * STORED
    yield "results of the stages and the artifact", output, base.parameters * STORED * (len(recipe.stages) + 1)


def _bytes(stage: Stage) -> int:
    match stage:
        case Distill(memory="little"):
            return TRAINED_LITTLE
        case Distill() | Shear() | Continue():
            return TRAINED
        case Vocabulary() if stage.fit:
            return TRAINED
    return 2 * STORED
