"""Rewrites one tokenizer's ids in those of a smaller one, so that losses on the same text compare.

A removed token becomes the smaller tokenizer's encoding of that token alone. Loss stays per token of the first
tokenizer, however many ids the second needs.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional


class RetokenisedWindows(NamedTuple):
    """Windows of text in the ids of the smaller tokenizer."""

    ids: Tensor
    """[windows, longest]; shorter ones are padded at the end, which a causal model does not see."""
    predicted: list[slice]
    """The ids of each window to predict: all but the ones that its first token became."""
    tokens: int
    """The number of predicted tokens of a window under the first tokenizer."""

    def loss(self, number: int, logits: Tensor) -> Tensor:
        """The mean negative log-likelihood of one window per token of the first tokenizer.

        `logits` [longest, vocabulary] are of the smaller model.
        """
        span = self.predicted[number]
        given = logits[span.start - 1 : span.stop - 1].float()
        return functional.cross_entropy(given, self.ids[number, span], reduction="sum") / self.tokens


class Retokeniser:
    """Maps ids of `before` to ids of `after`, whose tokens are a subset of `before`'s."""

    def __init__(self, before: Tokenizer, after: Tokenizer) -> None:
        self._before, self._after = before, after
        self._known = after.get_vocab(with_added_tokens=True)
        self._parts: dict[int, tuple[int, ...]] = {}

    def parts(self, id: int) -> tuple[int, ...]:
        """The ids of `after` that one id of `before` becomes."""
        if id not in self._parts:
            token = self._before.id_to_token(id) or ""
            known = self._known.get(token)
            found = [part.id for part in self._after.model.tokenize(token)] if known is None else [known]
            self._parts[id] = tuple(found)
        return self._parts[id]

    def ids(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Ids of `before` as ids of `after`."""
        return tuple(new for id in ids for new in self.parts(id))

    def back(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Ids of `after` as ids of `before`; ids without a token, padding rows of the embedding, are dropped."""
        found = (self._before.token_to_id(self._after.id_to_token(id) or "") for id in ids)
        return tuple(id for id in found if id is not None)


def retokenise(windows: Tensor, before: Tokenizer, after: Tokenizer) -> RetokenisedWindows:
    """`windows` [n, tokens] of `before`'s ids in `after`'s."""
    retokeniser = Retokeniser(before, after)
    rows = [list(retokeniser.ids(window)) for window in windows.tolist()]
    spans = [slice(len(retokeniser.parts(int(window[0]))), len(row)) for window, row in zip(windows, rows, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return RetokenisedWindows(ids, spans, windows.shape[1] - 1)
