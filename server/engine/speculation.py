"""Guesses how a sequence goes on: with the ids that followed when its last four stood in its own text before.

A guess costs a row of the next pass and saves a pass where it is right; sampling decides, and a reply is the same ids
with and without. Where guesses are wrong they become shorter, then rare.
"""

from itertools import cycle, islice
from typing import Literal

from msgspec import Struct

from server.engine.choice import Choice
from server.engine.sequence import Sequence
from server.errors import ConfigError

RUN = 4
"""Ids that must have stood before."""
FIRST = 3
"""Ids of a sequence's first guess, and of the first after a wrong one."""
MOST = 15
"""Ids of the longest guess: each that is right in full is followed by one twice as long."""
STREAMS = 4
"""The most replies of a pass with guesses: among more, a row costs what it can save."""
ROWS = 32
"""The most ids of a pass with guesses."""
LONGEST_PAUSE = 64


def choose_look_up(wanted: Literal["auto", "on", "off"], exact_rows: bool) -> "tuple[LookUp | None, Choice]":
    """Whether to guess, and why; ConfigError where guesses would change replies and were asked for."""
    if wanted == "off":
        return None, Choice("look-up", "off", "it was asked for")
    if exact_rows:
        why = "it was asked for" if wanted == "on" else "a row is the same bits in a chunk as alone, so replies stay"
        return LookUp(), Choice("look-up", "on", why)
    if wanted == "on":
        raise ConfigError("look_up is on, but this runner's rows depend on those beside them: replies would change.")
    return None, Choice("look-up", "off", "this runner's rows depend on those beside them, so replies would change")


class LookUp:
    """Guesses for all sequences of a scheduler, each from its own text only."""

    def __init__(self) -> None:
        self._texts: dict[Sequence, _Text] = {}

    def guess(self, sequence: Sequence, room: int) -> tuple[int, ...]:
        """At most `room` ids that may come next, never beyond the reply's last; none where there is no reason to."""
        text = self._texts.setdefault(sequence, _Text())
        place = text.find(sequence.tokens)
        if place is None or sequence.generated < text.resume:
            return ()
        most = max(0, min(text.reach, room, sequence.sampling.max_tokens - sequence.generated - 1))
        # What repeats itself up to its end is taken to go on so.
        return tuple(islice(cycle(sequence.tokens[place : place + most]), most))

    def judge(self, sequence: Sequence, guessed: int, right: int) -> None:
        """Of so many ids that were guessed, the first `right` were sampled."""
        text = self._texts[sequence]
        if right == guessed:
            text.reach, text.pause = min(2 * text.reach, MOST), 1
        elif 2 * right < guessed:  # a guess costs about half of what it saves where all of it is right
            text.reach, text.resume = FIRST, sequence.generated + text.pause
            text.pause = min(2 * text.pause, LONGEST_PAUSE)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._texts.pop(sequence, None)


class _Text(Struct):
    """What is known of a sequence: where each run of ids was last followed by another, and how guesses fared."""

    places: dict[tuple[int, ...], int] = {}
    known: int = RUN
    """Places up to here are in `places`."""
    reach: int = FIRST
    pause: int = 1
    resume: int = 0
    """Of the reply's ids, as many as must be there before the next guess."""

    def find(self, tokens: list[int]) -> int | None:
        """Where the text went on when its last ids stood before."""
        for place in range(self.known, len(tokens)):
            self.places[tuple(tokens[place - RUN : place])] = place
        self.known = max(self.known, len(tokens))
        return self.places.get(tuple(tokens[-RUN:]))
