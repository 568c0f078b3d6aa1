"""Which waiting request is next: that of the skill with the fewest running sequences, the oldest of these first.

So a skill that sends hundreds of requests waits for its own, and any other skill for one free slot.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def next_waiting(waiting: Iterable[T], running: Iterable[str], skill: Callable[[T], str]) -> T:
    """The request to admit of `waiting`, in order of arrival; `running` has the skill of each running sequence."""
    busy, oldest = Counter(running), dict[str, T]()
    for request in waiting:
        oldest.setdefault(skill(request), request)
    return min(oldest.values(), key=lambda request: busy[skill(request)])  # the first of equals
