"""Medians with their spread, nearest-rank percentiles, and a search for the largest load within bounds."""

import math
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

from tests.benchmarks.peers.figure import Figure
from tests.benchmarks.serving.loads.load import Timing

FIRST_TOKEN_SECONDS, GAP_SECONDS = 0.2, 0.05
PERCENT = 99


def ratio(above: Sequence[float], below: Sequence[float]) -> Figure:
    """The ratio round by round, so that a busy moment of the machine affects both."""
    return Figure(tuple(one / other for one, other in zip(above, below, strict=True)))


def percentile(values: Iterable[float], percent: float) -> float:
    """Nearest-rank percentile: the smallest value that `percent` per cent do not exceed; infinity if empty."""
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else math.inf


class Trial(NamedTuple):
    """Latencies and throughput that concurrent users saw."""

    users: int
    first_tokens: tuple[float, ...]
    gaps: tuple[float, ...]
    rate: float
    """Tokens a second of all users."""

    @classmethod
    def of(cls, users: int, timings: Sequence[Timing], seconds: float) -> "Trial":
        """The figures of replies that began within `seconds`."""
        gaps = tuple(gap for timing in timings for gap in timing.gaps)
        rate = sum(timing.tokens for timing in timings) / seconds
        return cls(users, tuple(timing.first_token for timing in timings), gaps, rate)

    @property
    def first_token(self) -> float:
        """99th percentile of TTFT, in seconds."""
        return percentile(self.first_tokens, PERCENT)

    @property
    def gap(self) -> float:
        """99th percentile of ITL, in seconds."""
        return percentile(self.gaps, PERCENT)

    @property
    def good(self) -> bool:
        """Whether TTFT and ITL are within guidellm's bounds for chat."""
        return self.first_token <= FIRST_TOKEN_SECONDS and self.gap <= GAP_SECONDS

    def __str__(self) -> str:
        return (
            f"{self.users} streams: TTFT p99 {self.first_token * 1000:.0f} ms (n {len(self.first_tokens)}), "
            f"ITL p99 {self.gap * 1000:.1f} ms (n {len(self.gaps)}), {self.rate:.0f} tokens/s"
            f"{'' if self.good else ' - too slow'}"
        )


def search(most: int, fine: int = 8) -> Generator[int, bool, int]:
    """A generator: yields a load, is sent whether it was good, and returns the largest good one, 0 if none.

    Doubles until one fails, then halves the distance until it is 1, or an eighth (`fine`) of the load.
    """
    good, bad, load = 0, most + 1, 1
    while load <= most:
        if not (yield load):
            bad = load
            break
        good, load = load, load * 2
    while bad - good > max(1, good // fine):
        middle = (good + bad) // 2
        if (yield middle):
            good = middle
        else:
            bad = middle
    return good
