"""The masks of a batch: which ids each row may be sampled from."""

from collections.abc import Iterator

import numpy
import torch
from torch import Tensor

from server.engine.batch import Batch
from server.engine.sampling.constraint import Mask


def masks(batch: Batch, vocabulary: int) -> list[Mask | None] | None:
    """The mask of each of `batch.sampled`, None for those without a grammar; None if no row has one.

    Where a grammar allows no id below `vocabulary`, its state fails, and the row has no mask.
    """
    if not any(chunk.sequence.constraint for chunk in batch.chunks):
        return None
    return list(_masks(batch, vocabulary))


def allowed_ids(mask: Mask, vocabulary: int) -> Tensor:
    """The allowed ids below `vocabulary`, ascending, int64."""
    bits = numpy.unpackbits(mask.view(numpy.uint8), bitorder="little", count=min(vocabulary, 32 * len(mask)))
    return torch.from_numpy(bits.nonzero()[0])


def _masks(batch: Batch, vocabulary: int) -> Iterator[Mask | None]:
    for chunk in batch.chunks:
        state = chunk.sequence.constraint
        if state is None:
            yield from [None] * chunk.rows
        elif chunk.rows:
            for mask in state.masks(chunk.ids[len(chunk.ids) - chunk.guesses :]):
                possible = bool(mask[: vocabulary // 32].any()) or bool(len(allowed_ids(mask, vocabulary)))
                if not possible:
                    state.fail("the model's vocabulary has no token that may come next")
                yield mask if possible else None
