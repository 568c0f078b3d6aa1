"""Bootstrap intervals: nominal coverage, seeds and pairing."""

import numpy as np
import pytest

from pruning.evaluation.comparison import bootstrap


def test_intervals_have_their_nominal_coverage() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = bootstrap.mean(list(generator.exponential(1.0, 60)), seed)
        hits += found.low <= 1.0 <= found.high
    assert 0.86 <= hits / 200 <= 0.98
    values, reference = [1.0, 2.0, 3.0, 9.0], [1.0, 1.0, 2.0, 5.0]
    assert bootstrap.ratio(values, reference, 0).value == pytest.approx(15 / 9)
    assert bootstrap.difference(values, reference, 0).value == pytest.approx(6 / 4)
    assert bootstrap.mean(values, 1) == bootstrap.mean(values, 1)
    many = list(generator.exponential(1.0, 60))
    assert bootstrap.mean(many, 1) != bootstrap.mean(many, 2)


def test_pairing_narrows_the_interval_of_a_common_change() -> None:
    reference = list(np.random.default_rng(0).exponential(1.0, 50))
    ratio = bootstrap.ratio([1.1 * value for value in reference], reference, 0)
    assert ratio.high - ratio.low < 1e-9
