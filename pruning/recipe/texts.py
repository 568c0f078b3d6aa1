"""The texts that a recipe names: one source, several mixed by weight, or several measured apart."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from pruning.recipe.bounds import Bucket

ALL_BUCKETS = tuple(range(10))


class WeightedText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One source of a mixture."""

    source: str
    """Where the text comes from, as in `calibration.source`."""
    buckets: Annotated[tuple[Bucket, ...], Meta(min_length=1)] = ALL_BUCKETS
    """Which tenths of its documents, as in `calibration.buckets`."""
    weight: Annotated[float, Meta(gt=0)] = 1.0
    """Relative share of the sequences."""

    def shares(self, other: "WeightedText | EvaluatedText") -> bool:
        """Whether both may contain the same document."""
        return self.source == other.source and bool(set(self.buckets) & set(other.buckets))


class EvaluatedText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One text that perplexity is measured on."""

    name: Annotated[str, Meta(pattern=r"^\w+$")]
    """Name in tables and in the lineage; unique in the recipe."""
    source: str
    """Where the text comes from, as in `evaluation.source`."""
    buckets: Annotated[tuple[Bucket, ...], Meta(min_length=1)] = ALL_BUCKETS
    """Which tenths of its documents, as in `evaluation.buckets`."""


def one_or_several(source: str, buckets: Sequence[int], several: Sequence[object], option: str) -> None:
    """Raise ValueError unless either `source` or `several`, the recipe's `option`, is given; each has its own buckets.

    `buckets` are those beside `source`.
    """
    if bool(source) == bool(several):
        raise ValueError(f"give either source or {option}, {'not both' if source else 'since there is no text'}")
    if several and tuple(buckets) != ALL_BUCKETS:
        raise ValueError(f"with {option}, each of them has its own buckets: write them there")


def refuse_repeated(texts: Sequence[WeightedText]) -> None:
    """Raise ValueError if two sources of a mixture may contain the same document."""
    for number, text in enumerate(texts):
        if any(text.shares(other) for other in texts[:number]):
            raise ValueError(f"{text.source} is in the mixture twice with common buckets: give it one weight")
