"""Draws seeded token ids [sequences, tokens] from a source, with a record of what was drawn."""

import hashlib
import random
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from pruning.data.documents import documents_of
from pruning.data.encoder import Encoder
from pruning.errors import DataError
from server.artifact.checkpoint.lineage import Data


class Draw(NamedTuple):
    """What to draw: `sequences` of `tokens` ids from the documents of `source` in `buckets`, shuffled by `seed`."""

    source: str
    buckets: Collection[int]
    sequences: int
    tokens: int
    seed: int = 0


def draw(wanted: Draw, encoder: Encoder) -> tuple[Tensor, Data]:
    """Shuffle the documents, join them with end-of-sequence ids and cut ids [sequences, tokens].

    Raises DataError, with the numbers, where the text is empty or too short.
    """
    source, buckets, sequences, tokens, seed = wanted
    documents = [document for document in documents_of(source, encoder.render) if document.bucket in buckets]
    random.Random(seed).shuffle(documents)
    ids: list[int] = []
    for document in documents:
        if len(ids) >= sequences * tokens:
            break
        ids += encoder.encode(document)
    if len(ids) < sequences * tokens:
        raise DataError(
            f"{source} gives {len(ids)} tokens in {len(documents)} texts of the buckets {sorted(buckets)}, "
            f"but {sequences} x {tokens} = {sequences * tokens} are needed"
        )
    packed = torch.tensor(ids[: sequences * tokens]).view(sequences, tokens)
    return packed, data_record(source, packed, seed)


def data_record(source: str, ids: Tensor, seed: int, parts: tuple[Data, ...] = ()) -> Data:
    """The lineage's record of `ids` [sequences, tokens], which mix those of `parts`."""
    return Data(source=source, digest=ids_digest(ids), sequences=len(ids), tokens=ids.shape[1], seed=seed, parts=parts)


def ids_digest(ids: Tensor) -> str:
    """SHA-256 of ids as little-endian int64."""
    return hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()
