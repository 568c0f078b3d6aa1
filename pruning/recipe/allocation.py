"""Ways to distribute the sparsity of a layerwise stage over blocks or matrices: options and bounds."""

from itertools import pairwise, product
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pruning.recipe.bounds import Count
from pruning.techniques import GPTQ
from pruning.techniques.mathematics.sparsity import Sparsity, nm_pattern
from pruning.techniques.technique import Technique

SEARCHED = 64
"""Columns in a group of the N:M levels of a search: the runtime packs any k:64, so k may differ between blocks."""

FEWEST = 3
"""Bits that a code of fewer is stored in."""


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


class Fisher(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="fisher"):
    """Choose the sparsity, and with GPTQ the bits, of each matrix: the least predicted rise of the loss at equal bytes.

    The prediction is Optimal Brain Surgeon's saliency times the Fisher information of the outputs; costs one backward
    pass over a few sequences. May be combined with `order`, `correction` and `objective`.
    """

    levels: Annotated[tuple[Sparsity, ...], Meta(min_length=2)] | None = None
    """Sparsities that a matrix may get: fractions, or "k:64". Without it, for "k:64" every fourth k from 16 to 60, for
    a fraction every twentieth within 0.3 of it, for 0 none. Codes below 8 bits are stored without their zeros in
    patterns only, so `gptq` takes a fraction in 8 bits alone."""
    bits: tuple[Literal[3, 4, 5, 6, 8], ...] = ()
    """Bits of a code that a matrix may get, for `gptq` only; without it, the technique's own."""
    whole: bool = False
    """Whether a matrix may also lose no weights, for `gptq` with a pattern or fraction: it is rounded only."""
    budget: Annotated[float, Meta(gt=0)] | None = None
    """Mean bits of a weight, masks included and scales left out; without it, what the technique's own level takes."""
    sequences: Count = 8
    """Calibration sequences that are run forward and back."""

    def candidates(self, technique: Technique) -> list[Technique]:
        """The technique with every level and number of bits, its own among them.

        Raises ValueError for mixed units, and for fractions of codes that are not stored so.
        """
        levels = dict.fromkeys([technique.sparsity, *(self.levels or _near(technique.sparsity))])
        if len({isinstance(level, str) for level in levels}) > 1:
            raise ValueError(f"sparsity {technique.sparsity} and the levels must all be fractions or all patterns")
        if isinstance(technique, GPTQ):
            bits = dict.fromkeys([technique.bits, *self.bits])
            if min(bits) < 8 and any(isinstance(level, float) and level > 0 for level in levels):
                raise ValueError(
                    f"codes of {min(bits)} bits are stored without their zeros in patterns only: take levels "
                    f'"k:{SEARCHED}", or 8 bits'
                )
            levels |= {0.0: None} if self.whole else {}
            return [
                msgspec.structs.replace(technique, sparsity=level, bits=width) for level, width in product(levels, bits)
            ]
        if self.bits or self.whole:
            name = type(technique).__struct_config__.tag
            raise ValueError(f"bits and whole are for gptq, and the technique is {name}")
        return [msgspec.structs.replace(technique, sparsity=level) for level in levels]

    def label(self, technique: Technique) -> float | str:
        """What the record of a result says of a matrix: its level, and its bits where they are chosen."""
        if isinstance(technique, GPTQ) and self.bits:
            return f"{technique.sparsity} in {technique.bits} bits"
        return technique.sparsity


def bits_per_weight(technique: Technique) -> float:
    """The bits that a weight takes after `technique`, scales left out: its kept share of values and one of a mask.

    Never more than a value: a matrix that removes too little to pay for the mask is stored with its zeros.
    """
    groups = nm_pattern(technique.sparsity)
    kept = groups.keep / groups.columns if groups else 1 - float(technique.sparsity)
    bits = max(technique.bits, FEWEST) if isinstance(technique, GPTQ) else 16
    return min(kept * bits + 1, bits)


def _near(sparsity: float | str) -> list[float | str]:
    """The default levels around `sparsity`."""
    groups = nm_pattern(sparsity)
    if groups:
        return [f"{keep}:{SEARCHED}" for keep in range(16, 61, 4)] if groups.columns == SEARCHED else []
    share = float(sparsity)
    steps = (round(share + step / 20, 4) for step in range(-6, 7))
    return [level for level in steps if 0 < level < 1] if share else []
