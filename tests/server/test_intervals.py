"""Bootstrap intervals: nominal coverage, seeds and pairing."""

import numpy as np
import pytest

from server import intervals


def test_intervals_have_their_nominal_coverage() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = intervals.mean(list(generator.exponential(1.0, 60)), seed)
        hits += found.low <= 1.0 <= found.high
    assert 0.86 <= hits / 200 <= 0.98
    values, reference = [1.0, 2.0, 3.0, 9.0], [1.0, 1.0, 2.0, 5.0]
    assert intervals.ratio(values, reference, 0).value == pytest.approx(15 / 9)
    assert intervals.difference(values, reference, 0).value == pytest.approx(6 / 4)
    assert intervals.mean(values, 1) == intervals.mean(values, 1)
    many = list(generator.exponential(1.0, 60))
    assert intervals.mean(many, 1) != intervals.mean(many, 2)


def test_pairing_narrows_the_interval_of_a_common_change() -> None:
    reference = list(np.random.default_rng(0).exponential(1.0, 50))
    ratio = intervals.ratio([1.1 * value for value in reference], reference, 0)
    assert ratio.high - ratio.low < 1e-9


@pytest.mark.parametrize(
    ("hits", "items", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_shares_are_those_of_newcombe_s_first_table(hits: int, items: int, low: float, high: float) -> None:
    found = intervals.share(hits, items)
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert intervals.share(0, 0) is None


def test_differences_of_shares_are_those_of_newcombe_s_second_table() -> None:
    found = intervals.difference_of_shares(intervals.share(56, 70), intervals.share(48, 80))
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)
    none = intervals.difference_of_shares(intervals.share(0, 10), intervals.share(0, 20))
    assert none is not None
    assert (round(none.low, 4), round(none.high, 4)) == (-0.1611, 0.2775)
    assert intervals.difference_of_shares(None, intervals.share(1, 2)) is None


def test_a_histogram_has_the_interval_of_its_items() -> None:
    values = list(np.random.default_rng(3).poisson(20, 400))
    counts = {int(value): values.count(value) for value in values}
    found, expected = intervals.mean_of_counts(counts, 0), intervals.mean([float(value) for value in values], 0)
    assert found is not None
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.1)
    apart = intervals.difference_of_counts(counts, {value + 1: items for value, items in counts.items()}, 0)
    assert apart is not None
    assert apart.value == pytest.approx(-1.0)
    assert apart.high - apart.low == pytest.approx(2**0.5 * (found.high - found.low), rel=0.15)
    assert intervals.mean_of_counts({}, 0) is None
