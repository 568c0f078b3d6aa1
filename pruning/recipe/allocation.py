"""How the sparsity of a layerwise stage may differ between blocks: what each way is told, and its bounds."""

from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from pruning.recipe.bounds import Count
from pruning.techniques.mathematics.patterns import Sparsity, nm_pattern

SEARCHED = 64
"""Columns of the groups among which a search may choose; k may differ by block, as the runtime packs any k:64."""


class OWL(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="owl"):
    """Remove less from blocks with more outliers of |weight| x input norm, for one more forward of the dense model."""

    outliers: Annotated[float, Meta(gt=1)] = 5.0
    """An outlier is above this many times the block's mean."""
    spread: Annotated[float, Meta(gt=0, lt=0.5)] = 0.08
    """The fractions lie over a range of twice this."""


class Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="search"):
    """Prune every block at every level, then let an evolution find which blocks can lose more and which less.

    Costs a pass of the technique for each level, then about 3 `tokens` of the model's forward for each generation.
    """

    levels: Annotated[tuple[Sparsity, ...], Meta(min_length=2)]
    """What a block may lose, in equal steps, the technique's sparsity among them: fractions, or "k:64"."""
    generations: Count = 30
    offspring: Count = 16
    """Mixtures tried in each generation."""
    tokens: Count = 8192
    """Calibration tokens on which the best of a generation is compared with its parent, and as many others on which
    the result is compared with the same sparsity for all."""
    seed: int = 0

    def ordered(self) -> list[float | str]:
        """The levels from the least removed to the most; raises ValueError unless they are in equal steps."""
        amounts = sorted((_amount(level), level) for level in self.levels)
        steps = [after[0] - before[0] for before, after in pairwise(amounts)]
        if min(steps) <= 0 or max(steps) - min(steps) > 1e-6 * max(steps):
            raise ValueError(f"the levels {', '.join(map(str, self.levels))} are not in equal steps")
        return [level for _, level in amounts]


def _amount(level: float | str) -> float:
    """What a level removes: a fraction, or the weights in 64 columns."""
    groups = nm_pattern(level)
    if groups and groups.columns != SEARCHED:
        raise ValueError(f'the level "{level}" is neither a fraction nor "k:{SEARCHED}"')
    return SEARCHED - groups.keep if groups else float(level)
