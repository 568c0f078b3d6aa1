"""How many ids a pass may compute while replies are being read, so that a long prompt does not make their readers wait.

It learns from the passes that computed prompts what an id costs on this machine, as busy as it is.
"""

PASS_SECONDS = 0.03
"""How long such a pass may take: readers bear 50 ms between two tokens, and HTTP and the ledger need some of it."""
LEAST = 8
"""Ids of prompts that a pass may compute in any case, so that nobody waits for ever."""
WEIGHT = 0.25
"""Of the latest pass in the average."""


class Pace:
    """Learns seconds for each id, and says how many fit."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def learn(self, ids: int, seconds: float) -> None:
        """A pass with prompts computed so many ids in so many seconds; a few ids tell only what any pass costs."""
        if ids < LEAST:
            return
        cost = seconds / ids
        self._seconds = cost if self._seconds is None else self._seconds + WEIGHT * (cost - self._seconds)

    def room(self, replies: int, most: int) -> int:
        """The ids of a pass beside so many replies, each of which takes one: at most `most`."""
        if not replies or not self._seconds:
            return most
        return min(most, max(replies + LEAST, int(PASS_SECONDS / self._seconds)))
