"""From logits to token ids: greedy at temperature 0, else a draw from the nucleus `top_p`.

A draw depends on its own row, the sequence's seed and the token's index, never on what else is in the batch."""

import random

import torch
from torch import Tensor

from server.engine.batch import Batch
from server.engine.sequence import Sequence
from server.errors import EngineFailed

_HEAD = 256  # a nucleus nearly always lies within so many tokens, and sorting a whole vocabulary takes milliseconds


def sample(batch: Batch, logits: Tensor) -> list[int]:
    """One id per row of logits [rows, vocabulary]; EngineFailed if a row holds NaN or infinity at its top."""
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise EngineFailed("The model computed NaN or infinite logits: its weights are damaged or overflow their type.")
    return [draw(row, sequence) for row, sequence in zip(logits, batch.sampled, strict=True)]


def draw(logits: Tensor, sequence: Sequence) -> int:
    """The next id of one sequence from its logits [vocabulary]."""
    sampling = sequence.sampling
    if sampling.temperature == 0:
        return int(logits.argmax())
    # Subtract the top first: a tiny temperature must sharpen, not overflow.
    probabilities = ((logits.double() - logits.max()) / sampling.temperature).softmax(dim=-1)
    ids, cumulative = _nucleus(probabilities, sampling.top_p)
    uniform = random.Random(f"{sequence.seed}/{sequence.generated}").random()
    index = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return int(ids[min(index, len(ids) - 1)])


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest most likely ids whose mass reaches `top_p` (lower id first in a tie), and their running sum."""
    if top_p >= 1:
        return torch.arange(len(probabilities)), probabilities.cumsum(0)
    head = min(_HEAD, len(probabilities))
    floor = probabilities.topk(head).values[-1]
    candidates = (probabilities >= floor).nonzero().flatten()  # with every tie at the floor, in order of id
    if float(probabilities[candidates].sum()) < top_p:
        candidates = torch.arange(len(probabilities))
    values, order = torch.sort(probabilities[candidates], descending=True, stable=True)
    cumulative = values.cumsum(0)
    size = int((cumulative < top_p).sum()) + 1
    return candidates[order[:size]], cumulative[:size]
