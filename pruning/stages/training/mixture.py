"""How often each domain of the data is read: more often where the loss is still above its reference.

Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, algorithm 1. Its official code omits the max with zero, so
that domains which are ahead lose weight at once, and mixes in a uniform share of 1e-4; this is the paper's form.
"""

from collections.abc import Sequence
from random import Random

import msgspec
import torch
from torch import Tensor

from pruning.recipe.bounds import finite


class Mixture(msgspec.Struct, frozen=True):
    """Where the domains of a run stand; every tuple has one entry for each, in the recipe's order."""

    reference: tuple[float, ...]
    """The held-out loss that is to be reached: the base's."""
    weights: tuple[float, ...]
    """Their shares of the batches, which sum to 1."""
    read: tuple[int, ...]
    """How many sequences have been read."""
    losses: tuple[tuple[float, ...], ...] = ()
    """Those of each score so far."""

    def judged(self, losses: Sequence[float]) -> "Mixture":
        """With the losses of one more score; all but the first, which is before any step, change the shares."""
        losses = tuple(map(finite, losses))
        history = (*self.losses, losses)
        if len(history) == 1:
            return msgspec.structs.replace(self, losses=history)
        values = (torch.tensor(value, dtype=torch.float64) for value in (self.weights, losses, self.reference))
        return msgspec.structs.replace(self, losses=history, weights=tuple(reweigh(*values).tolist()))

    def draw(self, count: int, seed: str) -> tuple[list[tuple[int, int]], "Mixture"]:
        """The domains of `count` sequences by chance, each with its next sequence's number; and what is read then."""
        read, drawn = list(self.read), []
        for domain in Random(seed).choices(range(len(read)), self.weights, k=count):
            drawn.append((domain, read[domain]))
            read[domain] += 1
        return drawn, msgspec.structs.replace(self, read=tuple(read))


def reweigh(weights: Tensor, loss: Tensor, reference: Tensor) -> Tensor:
    """The new weights [domains], which sum to 1, from the old ones and each domain's held-out loss and reference."""
    excess = (loss - reference).clamp_min(0)
    grown = weights * (excess - excess.max()).exp()  # the common factor cancels, and nothing overflows
    return grown / grown.sum()


def sequence(ids: Tensor, number: int, seed: int) -> Tensor:
    """The sequence [length] that is read as the `number`-th of `ids` [sequences, length]: in order, then shuffled."""
    reading, position = divmod(number, len(ids))
    if reading:
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed + reading))
        position = int(order[position])
    return ids[position]
