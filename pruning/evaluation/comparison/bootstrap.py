"""95 % intervals by the bootstrap over items: seeded, and paired where two models are compared on the same items.

Percentiles of the statistic over `RESAMPLES` draws of n items with replacement (Efron 1979; Koehn 2004 for pairs).
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


class Interval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def mean(values: Sequence[float], seed: int) -> Interval:
    """The mean of one value for each item."""
    array = np.asarray(values, dtype=np.float64)
    return _interval(float(array.mean()), array[_draws(len(array), seed)].mean(axis=1))


def difference(values: Sequence[float], reference: Sequence[float], seed: int) -> Interval:
    """The mean of `values` minus that of `reference`, item by item."""
    return mean([left - right for left, right in zip(values, reference, strict=True)], seed)


def ratio(values: Sequence[float], reference: Sequence[float], seed: int) -> Interval:
    """The mean of `values` as a multiple of that of `reference`, both over the same items of each draw."""
    left, right = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    draws = _draws(len(left), seed)
    return _interval(float(left.mean() / right.mean()), left[draws].mean(axis=1) / right[draws].mean(axis=1))


def _draws(count: int, seed: int) -> NDArray[np.int64]:
    """The items of each draw [RESAMPLES, count]; equal seeds give equal draws."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def _interval(value: float, statistics: NDArray[np.float64]) -> Interval:
    """The interval that holds the middle `LEVEL` of `statistics`."""
    low, high = np.quantile(statistics, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
