"""Chooses the tokens of a byte-pair encoding to keep by what a text loses without the others.

A removed token falls into the tokens it is merged from: each occurrence then costs that many more tokens, and counts
for them from then on. The cheapest token goes first, until the number is reached. Byte tokens stay, so every string can
still be encoded, and a kept token keeps the tokens it is merged from.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import Any

from pruning.errors import RecipeError
from pruning.stages.vocabulary import bpe

MULTIPLE = 64
"""The number of kept tokens is a multiple of this, which suits the kernels of all runtimes."""


def choose(
    definition: Mapping[str, Any], named: Iterable[str], counts: Mapping[str, float], keep: int | None
) -> set[str]:
    """The tokens of a parsed tokenizer.json to keep: a multiple of 64, at most `keep`.

    Always byte tokens, those `named`, and added tokens that `counts`, occurrences in the text, holds. Then those whose
    removal would cost the text most; without `keep`, all that cost it anything. Among equals the lowest id stays.
    Raises RecipeError if `keep` is too small or nothing would be removed.
    """
    removal = Removal(definition, named, counts)
    total, needed = len(bpe.ids_of(definition)), len(removal.needed)
    if keep is not None and needed > keep:
        raise RecipeError(
            f"keep = {keep} is too small: {needed} tokens are single bytes, special, or named by the model's files; "
            f"keep at least {_round_up(needed)}"
        )
    removal.run(needed if keep is None else keep, free=keep is None)
    removal.restore(_round_up(len(removal.kept)))
    if len(removal.kept) >= total:
        raise RecipeError(
            f"vocabulary would remove none of the {total} tokens: choose a text that uses fewer, or set keep"
        )
    return removal.kept


def lengthening(merges: bpe.Merges, kept: Collection[str], counts: Mapping[str, float]) -> float:
    """How many more tokens a text of `counts` takes with only `kept`; an occurrence counts with its weight."""
    lengths = dict.fromkeys(kept, 1)

    def length(token: str) -> int:
        if token not in lengths:
            lengths[token] = max(sum(map(length, merges.falls_into(token))), 1)
        return lengths[token]

    return sum(count * (length(token) - 1) for token, count in counts.items())


class Removal:
    """Removes tokens one by one; `kept` and the counts of kept tokens are up to date after each."""

    def __init__(self, definition: Mapping[str, Any], named: Iterable[str], counts: Mapping[str, float]) -> None:
        merges, self._ids = bpe.Merges(definition["model"]), bpe.ids_of(definition)
        added = set(bpe.added_tokens(definition))
        self.needed: set[str] = set()
        for token in [*bpe.byte_tokens(definition), *named, *(token for token in added if counts.get(token))]:
            self.needed |= merges.closure(token, self.needed)
        self._removed = sorted(added - self.needed, key=self._last)
        self.kept = self._ids.keys() - set(self._removed)
        self._counts = {token: float(counts.get(token, 0)) for token in self.kept}
        self._pieces = {token: merges.falls_into(token) for token in self.kept - self.needed}
        self._users = Counter(piece for pieces in self._pieces.values() for piece in set(pieces))
        self._users.update(part for token in self.needed for part in set(merges.parts(token)))
        self._heap = [self._entry(token) for token in self._pieces if self._loose(token)]
        heapify(self._heap)

    def run(self, size: int, *, free: bool) -> None:
        """Remove tokens until `size` are left; with `free` only tokens without a cost."""
        while len(self.kept) > size and self._heap:
            cost, _, token = heappop(self._heap)
            if cost != self._cost(token):  # it has gained occurrences of removed tokens
                heappush(self._heap, self._entry(token))
                continue
            if free and cost:
                return
            self._remove(token)

    def restore(self, size: int) -> None:
        """Take the last removed tokens back until `size` are kept; their occurrences still count for their pieces."""
        while len(self.kept) < size and self._removed:
            self.kept.add(self._removed.pop())

    def _remove(self, token: str) -> None:
        self.kept.discard(token)
        self._removed.append(token)
        for piece in self._pieces[token]:
            self._counts[piece] = self._counts.get(piece, 0) + self._counts[token]
        for piece in set(self._pieces[token]):
            self._users[piece] -= 1
            if self._loose(piece):
                heappush(self._heap, self._entry(piece))

    def _loose(self, token: str) -> bool:
        """Whether nothing kept needs `token`."""
        return token in self._pieces and token in self.kept and not self._users[token]

    def _cost(self, token: str) -> float:
        """The tokens that the text takes more without `token`; at least one for each occurrence."""
        return self._counts[token] * max(len(self._pieces[token]) - 1, 1)

    def _entry(self, token: str) -> tuple[float, int, str]:
        return self._cost(token), self._last(token), token

    def _last(self, token: str) -> int:
        """A key that sorts tokens from the highest id to the lowest."""
        return -self._ids[token]


def _round_up(count: int) -> int:
    """`count` rounded up to a multiple of 64."""
    return -(-count // MULTIPLE) * MULTIPLE
