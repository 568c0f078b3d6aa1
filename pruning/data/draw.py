"""Draws seeded token ids [sequences, tokens] from a source, with a record of what was drawn."""

import hashlib
import random
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from pruning.data.documents import Document, documents_of
from pruning.data.encoder import Encoder
from pruning.errors import DataError
from server.artifact.checkpoint.lineage import Data


class Draw(NamedTuple):
    """What to draw: `sequences` of `tokens` ids from the documents of `source` in `buckets`, shuffled by `seed`.

    With `contiguous` they keep their order and are one text, with empty lines between them.
    """

    source: str
    buckets: Collection[int]
    sequences: int
    tokens: int
    seed: int = 0
    contiguous: bool = False


def draw(wanted: Draw, encoder: Encoder) -> tuple[Tensor, Data]:
    """Shuffle the documents, join them with end-of-sequence ids and cut ids [sequences, tokens]; or keep them in order.

    Each sequence begins with the token that the tokenizer puts before a text, if any. Raises DataError, with the
    numbers, where the text is empty or too short.
    """
    source, buckets, sequences, tokens, seed, contiguous = wanted
    documents = [document for document in documents_of(source, encoder.render) if document.bucket in buckets]
    length = tokens - len(encoder.start)
    ids = _one_text(documents, encoder) if contiguous else _shuffled(documents, sequences * length, seed, encoder)
    if len(ids) < sequences * length:
        raise DataError(
            f"{source} gives {len(ids)} tokens in {len(documents)} texts of the buckets {sorted(buckets)}, "
            f"but {sequences} x {length} = {sequences * length} are needed"
        )
    packed = encoder.begun(torch.tensor(ids[: sequences * length]).view(sequences, length))
    return packed, data_record(source, packed, seed)


def _shuffled(documents: list[Document], count: int, seed: int, encoder: Encoder) -> list[int]:
    """At least `count` ids, if there are that many, of whole documents in random order, each with an end."""
    random.Random(seed).shuffle(documents)
    ids: list[int] = []
    for document in documents:
        if len(ids) >= count:
            break
        ids += encoder.encode(document)
    return ids


def _one_text(documents: list[Document], encoder: Encoder) -> list[int]:
    """The ids of all documents in their order, joined by empty lines."""
    return encoder.ids("\n\n".join(document.body.strip("\n") for document in documents))


def data_record(source: str, ids: Tensor, seed: int, parts: tuple[Data, ...] = ()) -> Data:
    """The lineage's record of `ids` [sequences, tokens], which mix those of `parts`."""
    return Data(source=source, digest=ids_digest(ids), sequences=len(ids), tokens=ids.shape[1], seed=seed, parts=parts)


def ids_digest(ids: Tensor) -> str:
    """SHA-256 of ids as little-endian int64."""
    return hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()
