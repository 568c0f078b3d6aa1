"""Mixes token ids of several sources by weight: whole sequences, spread so that every prefix has about the shares."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pruning.data.draw import data_record
from pruning.errors import DataError
from pruning.recipe.texts import WeightedText
from server.artifact.checkpoint.lineage import Data


def shares(texts: Sequence[WeightedText], total: int, what: str) -> list[int]:
    """How many of `total` sequences each of `texts` gives, by largest remainder; a tie goes to the first.

    Raises DataError where a text gets none; `what` names the sequences.
    """
    whole = sum(text.weight for text in texts)
    exact = [text.weight / whole * total for text in texts]
    counts = [int(share) for share in exact]
    for number in sorted(range(len(texts)), key=lambda index: counts[index] - exact[index])[: total - sum(counts)]:
        counts[number] += 1
    for text, count in zip(texts, counts, strict=True):
        if not count:
            raise DataError(
                f"{text.source} gets none of the {total} {what}, with a weight of {text.weight:g} in {whole:g}: "
                "raise its weight or their number"
            )
    return counts


def interleaved(parts: Sequence[Tensor]) -> Tensor:
    """The sequences of all `parts` [n, tokens], each part in its order, at even distances."""
    places = [((row + 0.5) / len(part), number, row) for number, part in enumerate(parts) for row in range(len(part))]
    return torch.stack([parts[number][row] for _, number, row in sorted(places)])


def mixed(parts: Sequence[tuple[Tensor, Data]]) -> tuple[Tensor, Data]:
    """The interleaved ids of `parts`, and a record that names each of them with its digest; one part stays as it is."""
    if len(parts) == 1:
        return parts[0]
    ids = interleaved([ids for ids, _ in parts])
    records = tuple(record for _, record in parts)
    return ids, data_record(", ".join(record.source for record in records), ids, records[0].seed, records)
