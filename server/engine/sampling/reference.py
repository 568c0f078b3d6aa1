"""Reference sampler in torch: greedy at temperature 0, else a draw after `min_p`, `top_k` and `top_p`, in this order.

A draw depends on its own row, the sequence's seed and the token's index, never on the rest of the batch. It defines the
native sampler's results, and serves where the C++ runtime is not built."""

import math
import random
from collections import Counter
from collections.abc import Sequence as Ids

import torch
from torch import Tensor

from server.engine.batch import Batch
from server.engine.sampling.constraint import Mask
from server.engine.sampling.masks import allowed_ids
from server.engine.sequence import Logprobs, Sampling, Sequence
from server.errors import EngineFailed

DAMAGED = "The model computed NaN or infinite logits: its weights are damaged or overflow their type."
_HEAD = 256  # nearly every nucleus is smaller, and sorting a whole vocabulary takes milliseconds


def sample(batch: Batch, logits: Tensor, masks: Ids[Mask | None] | None = None) -> list[int]:
    """Sample one id per row of logits [rows, vocabulary]; `masks` has the allowed ids of each row, None for all.

    Raises EngineFailed if the largest logit of a row is NaN or infinite.
    """
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise EngineFailed(DAMAGED)
    allowed = [None if mask is None else allowed_ids(mask, logits.shape[1]) for mask in masks or [None] * len(logits)]
    return [draw(*row) for row in zip(logits, batch.sampled, allowed, strict=True)]


def draw(logits: Tensor, sequence: Sequence, ids: Tensor | None = None) -> int:
    """Sample the next id of one sequence from its logits [vocabulary], among `ids`, ascending, if given."""
    sampling = sequence.sampling
    logits = _adjusted(logits, sequence)
    if ids is not None:
        logits = logits[ids]
    if sampling.temperature == 0 or float(logits.max()) == -math.inf:  # the first id where all are impossible
        return _id(ids, int(logits.argmax()))
    chosen = _candidates(logits, sampling)
    if chosen is not None:
        logits = logits[chosen]
        ids = chosen if ids is None else ids[chosen]
    # Subtract the top first: a tiny temperature must sharpen, not overflow.
    probabilities = ((logits.double() - logits.max()) / sampling.temperature).softmax(dim=-1)
    places, cumulative = _nucleus(logits, probabilities, sampling.top_p)
    index = int(torch.searchsorted(cumulative, uniform(sequence) * float(cumulative[-1]), right=True))
    return _id(ids, int(places[min(index, len(places) - 1)]))


def _id(ids: Tensor | None, place: int) -> int:
    return place if ids is None else int(ids[place])


def logprobs(logits: Tensor, id: int, count: int) -> Logprobs:
    """Log probabilities of `id` and of the `count` most likely ids, from unchanged logits [vocabulary]."""
    logarithms = logits.double().log_softmax(dim=-1)
    top = torch.sort(logits, descending=True, stable=True).indices[:count]
    return Logprobs(float(logarithms[id]), tuple((int(other), float(logarithms[other])) for other in top))


def uniform(sequence: Sequence) -> float:
    """The uniform number in [0, 1) that draws the sequence's next token."""
    return random.Random(f"{sequence.seed}/{sequence.generated}").random()


def changes(sequence: Sequence) -> dict[int, float]:
    """The sum of biases and penalties for each id that has any, to add to its logit.

    Stop ids get minus infinity until the reply has `min_tokens`.
    """
    sampling = sequence.sampling
    changed: dict[int, float] = dict(sampling.logit_bias)
    if sampling.frequency_penalty or sampling.presence_penalty:
        for id, count in Counter(sequence.tokens[len(sequence.prompt) :]).items():
            penalty = sampling.frequency_penalty * count + sampling.presence_penalty
            changed[id] = changed.get(id, 0.0) - penalty
    if sequence.generated < sampling.min_tokens:
        changed |= dict.fromkeys(sampling.stop_ids, -math.inf)
    return changed


def repeated(sequence: Sequence) -> list[int]:
    """The distinct ids of prompt and reply, ascending; empty without a repetition penalty."""
    return [] if sequence.sampling.repetition_penalty == 1 else sorted(set(sequence.tokens))


def _adjusted(logits: Tensor, sequence: Sequence) -> Tensor:
    """The logits with the repetition penalty, then biases and the other penalties."""
    changed, again = changes(sequence), repeated(sequence)
    if not changed and not again:
        return logits
    adjusted = logits.clone()
    penalty = torch.tensor(sequence.sampling.repetition_penalty, dtype=logits.dtype)
    before = logits[again]
    adjusted[again] = torch.where(before < 0, before * penalty, before / penalty)
    adjusted[list(changed)] += torch.tensor(list(changed.values()), dtype=logits.dtype)
    return adjusted


def _candidates(logits: Tensor, sampling: Sampling) -> Tensor | None:
    """The ids that `min_p` and `top_k` keep, in ascending order; None for all. Ties go to the lower id."""
    floor = -math.inf
    if sampling.min_p > 0:
        exact = float(logits.max()) + sampling.temperature * math.log(sampling.min_p)
        floor = float(torch.tensor(exact, dtype=logits.dtype))  # as the native sampler compares
    if not 0 < sampling.top_k < len(logits):
        return None if floor == -math.inf else (logits >= floor).nonzero().flatten()
    least = float(logits.topk(sampling.top_k).values[-1])
    if least < floor:
        return (logits >= floor).nonzero().flatten()
    above = (logits > least).nonzero().flatten()
    level = (logits == least).nonzero().flatten()[: sampling.top_k - len(above)]
    return torch.cat([above, level]).sort().values


def _nucleus(logits: Tensor, probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest most likely ids whose probabilities reach `top_p`, ties to the lower id, and their cumulative sum."""
    if top_p >= 1:
        return torch.arange(len(probabilities)), probabilities.cumsum(0)
    floor = logits.topk(min(_HEAD, len(logits))).values[-1]
    candidates = (logits >= floor).nonzero().flatten()  # with every tie at the floor, in order of id
    if float(probabilities[candidates].sum()) < top_p:
        candidates = torch.arange(len(probabilities))
    chosen = candidates[torch.sort(logits[candidates], descending=True, stable=True).indices]
    cumulative = probabilities[chosen].cumsum(0)
    size = int((cumulative < top_p).sum()) + 1
    return chosen[:size], cumulative[:size]
