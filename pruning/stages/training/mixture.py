"""Dynamic batch loading: domains whose loss is furthest above its reference get a larger share of the batches.

Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, algorithm 1. The official code omits the max with zero, so
domains ahead of their reference lose weight at once, and mixes in a uniform share of 1e-4; this is the paper's form.
"""

from collections.abc import Sequence
from random import Random

import msgspec
import torch
from torch import Tensor

from pruning.recipe.bounds import finite


class DomainMixture(msgspec.Struct, frozen=True):
    """The state of a run's domains; each tuple has one entry per domain, in the recipe's order."""

    reference: tuple[float, ...]
    """Target held-out losses: the base's, nats."""
    weights: tuple[float, ...]
    """Shares of the batches, which sum to 1."""
    read: tuple[int, ...]
    """Sequences read so far."""
    losses: tuple[tuple[float, ...], ...] = ()
    """Held-out losses at each score so far, nats."""

    def updated(self, losses: Sequence[float]) -> "DomainMixture":
        """The state with new held-out `losses` and shares reweighed by them; the first losses leave the shares."""
        losses = tuple(map(finite, losses))
        history = (*self.losses, losses)
        if len(history) == 1:
            return msgspec.structs.replace(self, losses=history)
        values = (torch.tensor(value, dtype=torch.float64) for value in (self.weights, losses, self.reference))
        return msgspec.structs.replace(self, losses=history, weights=tuple(reweigh(*values).tolist()))

    def draw(self, count: int, seed: str) -> tuple[list[tuple[int, int]], "DomainMixture"]:
        """Draw `count` sequences: pairs of a domain and its next sequence's number, and the mixture after reading."""
        read, drawn = list(self.read), []
        for domain in Random(seed).choices(range(len(read)), self.weights, k=count):
            drawn.append((domain, read[domain]))
            read[domain] += 1
        return drawn, msgspec.structs.replace(self, read=tuple(read))


def reweigh(weights: Tensor, loss: Tensor, reference: Tensor) -> Tensor:
    """New shares [domains] from the old ones, w_i exp(max(loss_i - reference_i, 0)), normalised to sum to 1."""
    excess = (loss - reference).clamp_min(0)
    grown = weights * (excess - excess.max()).exp()  # the common factor cancels, and avoids overflow
    return grown / grown.sum()


def sequence(ids: Tensor, number: int, seed: int) -> Tensor:
    """Sequence `number` [length] in reading order of `ids` [sequences, length]: shuffled anew after each epoch."""
    reading, position = divmod(number, len(ids))
    if reading:
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed + reading))
        position = int(order[position])
    return ids[position]
