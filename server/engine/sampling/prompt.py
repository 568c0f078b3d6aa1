"""Splits a pass's logits into rows to sample from and rows of prompt ids, whose log probabilities it computes."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from server.engine.batch import Batch, Chunk
from server.engine.sequence import Logprobs, PromptLogprob

RowLogprobs = Callable[[Tensor, int, int], Logprobs]
"""Logits [vocabulary], an id and a count -> the id's log probability and those of the `count` most likely ids."""


def sampled_rows(batch: Batch, logits: Tensor) -> Tensor:
    """The rows of logits [sum(batch.wanted), vocabulary] that ids are sampled from, one for each `batch.sampled`."""
    if not _scores(batch):
        return logits
    return torch.cat([rows[chunk.prompt_rows :] for chunk, rows in _rows(batch, logits)])


def prompt_logprobs(batch: Batch, logits: Tensor, of_row: RowLogprobs) -> Iterator[tuple[Chunk, list[PromptLogprob]]]:
    """The log probabilities of the prompt ids that follow each chunk's, for chunks with `prompt_rows`."""
    for chunk, rows in _rows(batch, logits) if _scores(batch) else ():
        count = chunk.sequence.sampling.prompt_logprobs
        if chunk.prompt_rows and count is not None:
            following = chunk.sequence.prompt[chunk.start + 1 :]
            places = zip(rows[: chunk.prompt_rows], following, strict=False)
            yield chunk, [PromptLogprob(of_row(row, id, count), _rank(row, id)) for row, id in places]


def _scores(batch: Batch) -> bool:
    return any(chunk.prompt_rows for chunk in batch.chunks)


def _rows(batch: Batch, logits: Tensor) -> Iterator[tuple[Chunk, Tensor]]:
    end = 0
    for chunk, count in zip(batch.chunks, batch.wanted, strict=True):
        start, end = end, end + count
        yield chunk, logits[start:end]


def _rank(row: Tensor, id: int) -> int:
    return 1 + int((row > row[id]).sum())
