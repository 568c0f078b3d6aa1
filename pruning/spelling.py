"""Windows of one tokenizer's ids in the tokens of a smaller one: the same text, so that losses can be compared.

A token that is gone is written as the smaller tokenizer would write it alone. Perplexity is then the exponential of the
text's loss for each token of the first tokenizer, whatever the number of the second's.
"""

from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional


class Spelt(NamedTuple):
    """Windows in other tokens."""

    ids: Tensor
    """[windows, longest]; shorter ones are filled up at their end, which a causal model does not see."""
    predicted: list[slice]
    """The tokens of each window that its first token before did not become."""
    tokens: int
    """How many tokens those were before."""

    def loss(self, number: int, logits: Tensor) -> Tensor:
        """The negative log-likelihood of one window for each of its tokens before; `logits` [longest, words]."""
        span = self.predicted[number]
        given = logits[span.start - 1 : span.stop - 1].float()
        return functional.cross_entropy(given, self.ids[number, span], reduction="sum") / self.tokens


def spell(windows: Tensor, before: Tokenizer, after: Tokenizer) -> Spelt:
    """`windows` [n, tokens] of the ids of `before` in those of `after`."""
    known = after.get_vocab(with_added_tokens=True)
    spelling: dict[int, list[int]] = {}
    for id in set(windows.flatten().tolist()):
        token = before.id_to_token(id)
        spelling[id] = [known[token]] if token in known else [part.id for part in after.model.tokenize(token)]
    rows = [[new for id in window for new in spelling[id]] for window in windows.tolist()]
    spans = [slice(len(spelling[int(window[0])]), len(row)) for window, row in zip(windows, rows, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return Spelt(ids, spans, windows.shape[1] - 1)
