"""The arithmetic of `make bench-serving`, on known numbers."""

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.peers.figure import Figure
from tests.benchmarks.serving.figures import Trial, percentile, ratio, search
from tests.benchmarks.serving.loads.load import Timing
from tests.benchmarks.serving.report import Line, table


def found(limit: int, most: int, fine: int = 8) -> tuple[int, list[int]]:
    """The result of a search in which loads up to `limit` are good, and the loads that it tried."""
    trials: list[int] = []
    going = search(most, fine)
    load = next(going)
    while True:
        trials.append(load)
        try:
            load = going.send(load <= limit)
        except StopIteration as end:
            return end.value, trials


@given(st.integers(0, 300), st.integers(1, 256), st.sampled_from([1, 4, 8, 1000]))
def test_the_search_finds_the_limit_within_its_fineness(limit: int, most: int, fine: int) -> None:
    result, trials = found(limit, most, fine)
    limit = min(limit, most)
    assert result <= limit
    assert limit - result < max(1, result // fine) or limit == result
    assert len(trials) == len(set(trials))
    assert max(trials) <= most


def test_the_search_doubles_and_then_halves() -> None:
    assert found(11, 64, 1000) == (11, [1, 2, 4, 8, 16, 12, 10, 11])
    assert found(0, 64) == (0, [1])
    assert found(64, 64)[0] == 64


@given(st.lists(st.floats(0, 10), min_size=1), st.integers(1, 100))
def test_a_percentile_is_numpys_of_nearest_rank(values: list[float], percent: int) -> None:
    assert percentile(values, percent) == numpy.percentile(values, percent, method="inverted_cdf")


def test_a_percentile_of_nothing_is_never_good() -> None:
    assert percentile([], 99) == math.inf
    assert not Trial.of(3, [], 1.0).good


@pytest.mark.parametrize(("first", "gap", "good"), [(0.19, 0.049, True), (0.21, 0.049, False), (0.19, 0.051, False)])
def test_a_trial_is_good_within_both_bounds(first: float, gap: float, good: bool) -> None:
    timing = Timing(5.0, (5.0 + first, 5.0 + first + gap, 5.0 + first + gap + 0.01), 30, 0, 3)
    trial = Trial.of(2, [timing] * 4, 2.0)
    assert trial.good is good
    assert trial.first_token == pytest.approx(first)
    assert trial.gap == pytest.approx(gap)
    assert trial.rate == 6
    assert ("too slow" in str(trial)) is not good


def test_one_slow_reply_in_two_hundred_is_no_99th_percentile() -> None:
    slow = Timing(0.0, (9.0,), 30, 0, 1)
    quick = Timing(0.0, (0.1,), 30, 0, 1)
    assert Trial.of(1, [slow, *[quick] * 199], 1.0).first_token == 0.1
    assert Trial.of(1, [slow, *[quick] * 50], 1.0).first_token == 9.0


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([10, 40], [20, 40]) == Figure((0.5, 1.0))
    assert ratio([10, 40], [20, 40]).shown(".2f") == "0.75 (0.50 to 1.00)"


def test_a_line_says_whether_its_bound_is_met() -> None:
    line = Line("speed", [9, 8, 7], [10, 10, 10], ratio([9, 8, 7], [10, 10, 10]), 0.75)
    assert str(line) == "| speed | 8 (7 to 9) | 10 (10 to 10) | 0.800 (0.700 to 0.900) | >= 0.75: yes |"
    assert str(line._replace(asked=0.9)).endswith("| >= 0.9: no |")
    assert str(line._replace(asked=0.9, most=True)).endswith("| <= 0.9: yes |")
    assert table([line], "note").endswith(f"{line}\n\nnote")
