"""Moving windows in memory, compared with the whole history on a simulated clock."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from server.skills.windows import WINDOW_SECONDS, MemoryWindows

Attempt = tuple[float, str, int]
"""When (or how long after the one before, in quarters of a second), whose, and how much."""


@settings(deadline=None, derandomize=True)
@given(
    limit=st.integers(1, 9),
    attempts=st.lists(st.tuples(st.integers(0, 160), st.sampled_from("ab"), st.integers(1, 9)), max_size=40),
)
def test_at_most_the_limit_is_spent_within_any_window(limit: int, attempts: list[Attempt]) -> None:
    now = 1000.0
    memory = MemoryWindows(lambda: now)
    spent: list[Attempt] = []

    def within(owner: str, at: float) -> int:
        return sum(cost for when, who, cost in spent if who == owner and at - WINDOW_SECONDS < when <= at)

    for pause, owner, cost in attempts:
        if cost > limit:
            continue
        now += pause / 4  # exact in binary, so that windows end exactly
        fits = within(owner, now) + cost <= limit
        found = asyncio.run(memory.spend("tokens", owner, cost, limit))
        assert found.allowed == fits
        if fits:
            spent.append((now, owner, cost))
        assert found.remaining == limit - within(owner, now)
        assert 0 < found.reset <= WINDOW_SECONDS
        then = now + found.reset
        if fits:  # the oldest is the next to be free again
            assert within(owner, then) < within(owner, now) == within(owner, then - 0.25)
        else:  # it fits when told to come back, and no sooner
            assert within(owner, then) + cost <= limit < within(owner, then - 0.25) + cost


def test_unused_windows_are_dropped() -> None:
    now = 0.0
    memory = MemoryWindows(lambda: now)

    async def visits() -> None:
        nonlocal now
        for name in range(2000):
            await memory.spend("requests", str(name), 1, 1)
        assert len(memory._windows) == 2000
        now += WINDOW_SECONDS
        await memory.spend("requests", "later", 1, 1)
        assert len(memory._windows) == 1

    asyncio.run(visits())


def test_a_lowered_limit_counts_what_was_spent_before() -> None:
    memory = MemoryWindows(lambda: 0.0)
    assert asyncio.run(memory.spend("requests", "a", 3, 5)).allowed
    refused = asyncio.run(memory.spend("requests", "a", 1, 2))
    assert (refused.allowed, refused.remaining) == (False, 0)
