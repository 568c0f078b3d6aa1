"""Which waiting request is next: that of the skill with the fewest running sequences, the oldest of these first.

While several skills are asked, one slot is kept from any single one: a skill that sends hundreds of requests waits for
its own, and another's request begins at once.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
RECENT = 10_000
"""Requests after which a skill that sent none of them no longer has a slot kept for it."""
FEWEST = 3
"""Slots below which none is kept."""


class Shares:
    """How many of `slots` one skill may have."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._asked = 0
        self._latest: dict[str, int] = {}

    def asked(self, skill: str) -> None:
        """Note a request."""
        self._asked += 1
        self._latest[skill] = self._asked

    def most(self, skill: str) -> int:
        """All slots for a skill that is asked alone, else all but one."""
        others = (latest for other, latest in self._latest.items() if other != skill)
        alone = self._asked - max(others, default=-RECENT) >= RECENT
        return self._slots if alone or self._slots < FEWEST else self._slots - 1


def next_waiting(waiting: Iterable[T], running: Iterable[str], skill: Callable[[T], str], shares: Shares) -> T | None:
    """The request to admit of `waiting`, in order of arrival; None if each skill has its share.

    `running` has the skill of each running sequence.
    """
    busy, oldest = Counter(running), dict[str, T]()
    for request in waiting:
        oldest.setdefault(skill(request), request)
    allowed = [request for name, request in oldest.items() if busy[name] < shares.most(name)]
    return min(allowed, key=lambda request: busy[skill(request)], default=None)  # the first of equals
