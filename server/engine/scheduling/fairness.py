"""Which waiting request is next: that of the skill with the fewest running sequences, the oldest of these first.

Where every slot is taken, a skill below its fair share has guest places: its request begins at once, however many of
another skill run and wait, and the busy skill's slots are not refilled until the guests fit.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def guest_places(slots: int) -> int:
    """Sequences that may run beyond `slots`; they take blocks that shorter sequences leave free."""
    return slots // 2


def next_waiting(waiting: Iterable[T], running: Iterable[str], skill: Callable[[T], str], slots: int) -> T | None:
    """The request to admit of `waiting`, in order of arrival; None if all have to wait.

    `running` has the skill of each running sequence. With `slots` of them or more, only a skill with fewer than its
    fair share, `slots` by the number of skills that run or wait, is admitted.
    """
    busy, oldest = Counter(running), dict[str, T]()
    for request in waiting:
        oldest.setdefault(skill(request), request)
    name = min(oldest, key=lambda name: busy[name], default=None)  # the first of equals
    if name is None:
        return None
    share = max(slots // len(busy.keys() | oldest.keys()), 1)
    return oldest[name] if busy.total() < slots or busy[name] < share else None
