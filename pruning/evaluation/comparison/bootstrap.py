"""95 % confidence intervals by the seeded bootstrap over items, paired where two models are scored on the same items.

Percentiles of the statistic over `RESAMPLES` draws of n items with replacement (Efron 1979; Koehn 2004 for pairs).
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


class Interval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A statistic and the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def mean(values: Sequence[float], seed: int) -> Interval:
    """The mean of `values` [items]."""
    array = np.asarray(values, dtype=np.float64)
    return _interval(float(array.mean()), array[_draws(len(array), seed)].mean(axis=1))


def difference(values: Sequence[float], reference: Sequence[float], seed: int) -> Interval:
    """The mean of `values` minus that of `reference`, paired by item."""
    return mean([left - right for left, right in zip(values, reference, strict=True)], seed)


def ratio(values: Sequence[float], reference: Sequence[float], seed: int) -> Interval:
    """The mean of `values` divided by that of `reference`, paired by item."""
    left, right = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    draws = _draws(len(left), seed)
    return _interval(float(left.mean() / right.mean()), left[draws].mean(axis=1) / right[draws].mean(axis=1))


def _draws(count: int, seed: int) -> NDArray[np.int64]:
    """The item indices of each draw [RESAMPLES, count]; equal seeds give equal draws."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def _interval(value: float, statistics: NDArray[np.float64]) -> Interval:
    """`value` with the bounds of the middle `LEVEL` of `statistics` [RESAMPLES]."""
    low, high = np.quantile(statistics, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
