"""Windows of one tokenizer's ids in the tokens of a smaller one: the same text, so that losses can be compared.

A token that is gone is written as the smaller tokenizer would write it alone. Perplexity is then the exponential of the
text's loss for each token of the first tokenizer, whatever the number of the second's.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional


class RetokenisedWindows(NamedTuple):
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


class Retokeniser:
    """The ids of `before` in those of `after`, which has fewer tokens, all of them known to `before`."""

    def __init__(self, before: Tokenizer, after: Tokenizer) -> None:
        self._before, self._after = before, after
        self._known = after.get_vocab(with_added_tokens=True)
        self._parts: dict[int, tuple[int, ...]] = {}

    def parts(self, id: int) -> tuple[int, ...]:
        """The ids that one id becomes."""
        if id not in self._parts:
            token = self._before.id_to_token(id) or ""
            known = self._known.get(token)
            found = [part.id for part in self._after.model.tokenize(token)] if known is None else [known]
            self._parts[id] = tuple(found)
        return self._parts[id]

    def ids(self, ids: Iterable[int]) -> tuple[int, ...]:
        """All ids of a text."""
        return tuple(new for id in ids for new in self.parts(id))

    def back(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Ids of `after` as `before` has them; a row of the embedding without a token is left out."""
        found = (self._before.token_to_id(self._after.id_to_token(id) or "") for id in ids)
        return tuple(id for id in found if id is not None)


def retokenise(windows: Tensor, before: Tokenizer, after: Tokenizer) -> RetokenisedWindows:
    """`windows` [n, tokens] of the ids of `before` in those of `after`."""
    spelling = Retokeniser(before, after)
    rows = [list(spelling.ids(window)) for window in windows.tolist()]
    spans = [slice(len(spelling.parts(int(window[0]))), len(row)) for window, row in zip(windows, rows, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return RetokenisedWindows(ids, spans, windows.shape[1] - 1)
