"""The cache probe's verdicts on made-up timings: a leak is seen, and so is a probe that would see none."""

import random

import pytest

from tests.exams.hostile.cache_probe import Seen, Trials, control, guessed, sharp

HIT, MISS = Seen(224, 0.05), Seen(64, 0.3)


def trials(right: Seen, wrong: Seen, *, noise: float = 0.01) -> Trials:
    generator = random.Random(1)

    def some(seen: Seen) -> list[Seen]:
        return [seen._replace(seconds=seen.seconds + generator.gauss(0, noise)) for _ in range(40)]

    return Trials(some(right), some(wrong))


@pytest.mark.parametrize(
    ("right", "held"),
    [
        (MISS, [True, True]),
        (HIT, [False, False]),
        (MISS._replace(cached=HIT.cached), [False, True]),
        (MISS._replace(seconds=HIT.seconds), [True, False]),
    ],
)
def test_a_leak_by_counts_or_by_time_is_beyond_its_bound(right: Seen, held: list[bool]) -> None:
    assert [row.held for row in guessed("a visitor's words", trials(right, MISS), saved=250)] == held


def test_a_probe_that_sees_no_hit_is_not_trusted() -> None:
    assert all(row.held for row in control(trials(HIT, MISS)))
    assert not any(row.held for row in control(trials(MISS, MISS)))


def test_more_rounds_follow_while_noise_is_wider_than_the_bound() -> None:
    own = trials(HIT, MISS)
    assert sharp([own, trials(MISS, MISS)])
    assert not sharp([own, trials(MISS, MISS, noise=0.2)])
