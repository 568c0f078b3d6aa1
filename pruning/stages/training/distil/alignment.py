"""Aligns two tokenisations of a text, of which one has fewer tokens, so that one model distils into the other.

Where a token of the larger vocabulary ends, one of the smaller does too, and both models predict what comes next. There
the larger one's distribution is summed over the tokens that begin with the same token of the smaller vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pruning.data.retokenise import Retokeniser

ROWS = 32
"""Positions whose probabilities are in float32 at once."""


class AlignedIds(NamedTuple):
    """A batch in the ids of the smaller vocabulary; positions count through the flattened batch."""

    ids: Tensor
    """[sequences, longest]; shorter ones are padded at the end, which a causal model does not see."""
    ends: Tensor
    """[tokens of the larger vocabulary] the position of the last id of each token."""
    inside: Tensor
    """[n] the positions within a removed token, whose next id is known."""
    following: Tensor
    """[n] that next id."""


class Alignment:
    """From a vocabulary of `before` ids to one of `after`, by `retokeniser`."""

    def __init__(self, retokeniser: Retokeniser, before: int, after: int) -> None:
        self._retokeniser, self._after = retokeniser, after
        parts = [retokeniser.parts(id) for id in range(before)]
        self._first = torch.tensor([part[0] if part else after for part in parts])  # rows without a token go nowhere

    def align(self, ids: Tensor) -> AlignedIds:
        """`ids` [sequences, tokens] of the larger vocabulary in the smaller one's."""
        rows = [[self._retokeniser.parts(id) for id in row] for row in ids.tolist()]
        flat = [[new for part in row for new in part] for row in rows]
        longest = max(map(len, flat))
        ends: list[int] = []
        inside: list[int] = []
        for number, row in enumerate(rows):
            at = number * longest - 1
            for place, part in enumerate(row):
                if place:  # nothing predicts the first token, nor is it learned how to complete it
                    inside += range(at + 1, at + len(part))
                at += len(part)
                ends.append(at)
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in flat])
        within = torch.tensor(inside, dtype=torch.long)
        return AlignedIds(padded, torch.tensor(ends), within, padded.flatten()[within + 1])

    def fold(self, logits: Tensor) -> Tensor:
        """Log-probabilities [..., after] of the next id of the smaller vocabulary, from `logits` [..., before]."""
        first = self._first.to(logits.device)
        flat = logits.flatten(0, -2)
        folded = flat.new_empty(len(flat), self._after)
        for start in range(0, len(flat), ROWS):
            likely = flat[start : start + ROWS].float().softmax(dim=-1)
            sums = likely.new_zeros(len(likely), self._after + 1).index_add_(1, first, likely)
            folded[start : start + ROWS] = sums[:, :-1].clamp_min(torch.finfo(torch.float32).tiny).log()
        return folded.view(*logits.shape[:-1], self._after)
