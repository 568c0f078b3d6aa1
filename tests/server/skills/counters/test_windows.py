"""Moving windows in memory, compared with the whole history on a simulated clock."""

from hypothesis import given, settings
from hypothesis import strategies as st

from server.skills.counters.windows import WINDOW_SECONDS, MemoryWindows, Spent

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
        found = memory.spend("tokens", cost, {owner: limit})[owner]
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
    for name in range(2000):
        memory.spend("requests", 1, {str(name): 1})
    assert len(memory._windows) == 2000
    now += WINDOW_SECONDS
    memory.spend("requests", 1, {"later": 1})
    assert len(memory._windows) == 1


def test_a_lowered_limit_counts_what_was_spent_before() -> None:
    memory = MemoryWindows(lambda: 0.0)
    assert memory.spend("requests", 3, {"a": 5})["a"].allowed
    refused = memory.spend("requests", 1, {"a": 2})["a"]
    assert (refused.allowed, refused.remaining) == (False, 0)


def test_what_does_not_fit_one_window_is_spent_from_none() -> None:
    now = 0.0
    memory = MemoryWindows(lambda: now)
    memory.spend("tokens", 5, {"skill": 10})
    now = 20.0
    refused = memory.spend("tokens", 6, {"key": 100, "skill": 10})
    assert refused == {"key": Spent(True, 100, 0.0), "skill": Spent(False, 5, 40.0)}
    assert memory.spend("tokens", 5, {"key": 100, "skill": 10})["key"] == Spent(True, 95, 60.0)
