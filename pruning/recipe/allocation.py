"""Ways to distribute the sparsity of a layerwise stage over the blocks: options and bounds."""

from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from pruning.recipe.bounds import Count
from pruning.techniques.mathematics.patterns import Sparsity, nm_pattern

SEARCHED = 64
"""Columns in a group of the N:M levels of a search: the runtime packs any k:64, so k may differ between blocks."""


class OWL(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="owl"):
    """Prune blocks with more outliers of |weight| x input norm less; costs one forward of the dense model.

    Yin et al., OWL, https://arxiv.org/abs/2310.05175.
    """

    outliers: Annotated[float, Meta(gt=1)] = 5.0
    """An outlier exceeds the mean of its block by this factor."""
    spread: Annotated[float, Meta(gt=0, lt=0.5)] = 0.08
    """Sparsities differ from the mean by at most about this much: their range is twice the spread."""


class Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="search"):
    """Prune every block at every level, then find the best level for each block by an evolutionary search.

    Sieberling et al., EvoPress, https://arxiv.org/abs/2410.14649. Costs one pass of the technique for each level, then
    for each generation a forward of the model over about 3 x `tokens`.
    """

    levels: Annotated[tuple[Sparsity, ...], Meta(min_length=2)]
    """Sparsities that a block may get, in equal steps, the technique's own among them: fractions, or "k:64"."""
    generations: Count = 30
    """Generations of the search."""
    offspring: Count = 16
    """Candidates tried in each generation."""
    tokens: Count = 8192
    """Calibration tokens on which the best candidate of a generation is compared with its parent; as many others
    compare the result with uniform sparsity."""
    seed: int = 0
    """Seeds the mutations."""

    def ordered(self) -> list[float | str]:
        """The levels from the least sparse to the sparsest; raises ValueError unless they are in equal steps."""
        amounts = sorted((_amount(level), level) for level in self.levels)
        steps = [after[0] - before[0] for before, after in pairwise(amounts)]
        if min(steps) <= 0 or max(steps) - min(steps) > 1e-6 * max(steps):
            raise ValueError(f"the levels {', '.join(map(str, self.levels))} are not in equal steps")
        return [level for _, level in amounts]


def _amount(level: float | str) -> float:
    """The sparsity of a level: a fraction, or the number of zeros in 64 columns."""
    groups = nm_pattern(level)
    if groups and groups.columns != SEARCHED:
        raise ValueError(f'the level "{level}" is neither a fraction nor "k:{SEARCHED}"')
    return SEARCHED - groups.keep if groups else float(level)
