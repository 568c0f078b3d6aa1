"""Exact moving windows of the last minute, in this process."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Literal, NamedTuple

WINDOW_SECONDS = 60
Unit = Literal["requests", "tokens", "sessions"]


class Spent(NamedTuple):
    """The result of one attempt to spend from a window."""

    allowed: bool
    """Whether it fits; nothing is spent from any window unless it fits all of them."""
    remaining: int
    reset: float
    """Seconds until more can be spent; after a refusal, until the same attempt fits."""


class MemoryWindows:
    """Windows of WINDOW_SECONDS by unit and owner; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[tuple[Unit, str], _Window] = OrderedDict()
        """The one spent from least recently is first."""

    def spend(self, unit: Unit, cost: int, limits: Mapping[str, int]) -> dict[str, Spent]:
        """Spend `cost` from the windows of all owners, or of none if one of their limits is exceeded then."""
        now = self._clock()
        self._forget(now - WINDOW_SECONDS)
        windows = {owner: self._windows.get((unit, owner)) or _Window() for owner in limits}
        for window in windows.values():
            window.expire(now - WINDOW_SECONDS)
        excess = {owner: windows[owner].total + cost - limit for owner, limit in limits.items()}
        if all(over <= 0 for over in excess.values()):
            for owner, window in windows.items():
                window.add(now, cost)
                self._windows[unit, owner] = window
                self._windows.move_to_end((unit, owner))
        return {
            owner: Spent(over <= 0, max(0, limits[owner] - windows[owner].total), windows[owner].reset(now, over))
            for owner, over in excess.items()
        }

    def _forget(self, before: float) -> None:
        """Drop the windows in which nothing was spent since `before`."""
        while self._windows and next(iter(self._windows.values())).latest <= before:
            self._windows.popitem(last=False)


class _Window:
    """The amounts spent from one limit, the oldest first."""

    def __init__(self) -> None:
        self.total = 0
        self._spent: deque[tuple[float, int]] = deque()

    @property
    def latest(self) -> float:
        return self._spent[-1][0]

    def add(self, now: float, cost: int) -> None:
        self._spent.append((now, cost))
        self.total += cost

    def expire(self, before: float) -> None:
        while self._spent and self._spent[0][0] <= before:
            self.total -= self._spent.popleft()[1]

    def reset(self, now: float, excess: int) -> float:
        """Seconds until `excess` units, or the oldest one, have expired; 0 for an empty window."""
        freed = accumulate(cost for _, cost in self._spent)
        wanted = max(1, excess)
        when = next((when for (when, _), sum in zip(self._spent, freed, strict=True) if sum >= wanted), None)
        return 0.0 if when is None else WINDOW_SECONDS - (now - when)
