"""Speculative decoding by prompt look-up: guesses the ids that followed the last four where these occurred before.

A guess costs a logits row, and saves a pass where it is right. Sampling decides, so replies are the same with and
without. After failed guesses a sequence gets shorter guesses, then rarer ones.
"""

from itertools import cycle, islice
from typing import Literal

from msgspec import Struct

from server.engine.choice import Choice
from server.engine.sequence import Sequence
from server.errors import ConfigError

NGRAM = 4
"""Ids that must have occurred before."""
FIRST = 3
"""Length of a sequence's first guess, and of the first after a failure; each success doubles it."""
LONGEST = 15
"""Ids of the longest guess."""
MOST_SEQUENCES = 4
"""Sequences in a pass with guesses; among more, a row costs what it can save."""
MOST_ROWS = 32
"""Ids in a pass with guesses."""
LONGEST_PAUSE = 64
"""Tokens without a guess, at most, after repeated failures."""


def choose_look_up(wanted: Literal["auto", "on", "off"], exact_rows: bool) -> "tuple[PromptLookup | None, Choice]":
    """Whether to guess, and why; ConfigError if `wanted` is on and guesses would change replies."""
    if wanted == "off":
        return None, Choice("look-up", "off", "it was asked for")
    if exact_rows:
        why = "it was asked for" if wanted == "on" else "a row is the same bits in a chunk as alone, so replies stay"
        return PromptLookup(), Choice("look-up", "on", why)
    if wanted == "on":
        raise ConfigError('look_up is "on", but this runner\'s rows depend on their batch: replies would change.')
    return None, Choice("look-up", "off", "this runner's rows depend on their batch, so replies would change")


class PromptLookup:
    """Guesses for all sequences of a scheduler, each from its own text only."""

    def __init__(self) -> None:
        self._histories: dict[Sequence, _History] = {}

    def guess(self, sequence: Sequence, room: int) -> tuple[int, ...]:
        """At most `room` ids that may come next, within the reply's `max_tokens`; empty without a match."""
        history = self._histories.setdefault(sequence, _History())
        place = history.find(sequence.tokens)
        if place is None or sequence.generated < history.resume:
            return ()
        most = max(0, min(history.length, room, sequence.sampling.max_tokens - sequence.generated - 1))
        # A match that runs up to the end of the text is continued as a loop.
        return tuple(islice(cycle(sequence.tokens[place : place + most]), most))

    def record(self, sequence: Sequence, guessed: int, right: int) -> None:
        """Adapt to the outcome of a guess of `guessed` ids, of which the first `right` were sampled."""
        history = self._histories[sequence]
        if right == guessed:
            history.length, history.pause = min(2 * history.length, LONGEST), 1
        elif 2 * right < guessed:  # a guess costs about half of what it saves where all of it is right
            history.length, history.resume = FIRST, sequence.generated + history.pause
            history.pause = min(2 * history.pause, LONGEST_PAUSE)

    def forget(self, sequence: Sequence) -> None:
        """Drop what is known of a sequence that ended."""
        self._histories.pop(sequence, None)


class _History(Struct):
    """The n-grams of a sequence, and how its guesses fared."""

    places: dict[tuple[int, ...], int] = {}
    """N-gram -> the index after its last occurrence."""
    indexed: int = NGRAM
    """Indices below are in `places`."""
    length: int = FIRST
    """Ids of the next guess."""
    pause: int = 1
    """Tokens without a guess after the next failure."""
    resume: int = 0
    """Length of the reply at which guessing resumes."""

    def find(self, tokens: list[int]) -> int | None:
        """The index after the previous occurrence of the last ids, or None."""
        for place in range(self.indexed, len(tokens)):
            self.places[tuple(tokens[place - NGRAM : place])] = place
        self.indexed = max(self.indexed, len(tokens))
        return self.places.get(tuple(tokens[-NGRAM:]))
