"""95 % confidence intervals: of means by the seeded bootstrap over items, and of shares by Wilson's score.

A bootstrap takes percentiles of the statistic over `RESAMPLES` draws of n items with replacement (Efron 1979), paired
where two models are scored on the same items (Koehn 2004), drawn apart for independent samples.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
SCORE = 1.959963984540054
"""The standard normal's quantile at (1 + LEVEL) / 2."""
AT_ONCE = 100
"""Resamples of a histogram that are drawn at once; bounds the memory."""


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


def mean_of_counts(counts: Mapping[int, int], seed: int) -> Interval | None:
    """The mean of the items of a histogram, value -> items; None without items."""
    if not counts:
        return None
    return _interval(_average(counts), _means(counts, seed))


def difference_of_counts(counts: Mapping[int, int], reference: Mapping[int, int], seed: int) -> Interval | None:
    """The mean of one histogram minus that of an independent one; None if either has no items."""
    if not counts or not reference:
        return None
    drawn = _means(counts, seed) - _means(reference, seed + 1)
    return _interval(_average(counts) - _average(reference), drawn)


def share(hits: int, items: int) -> Interval | None:
    """The share of `hits` among `items` by Wilson's score interval (1927, equation 5 of Newcombe 1998a)."""
    if not items:
        return None
    value, square = hits / items, SCORE * SCORE
    middle = (value + square / (2 * items)) / (1 + square / items)
    reach = SCORE / (1 + square / items) * math.sqrt(value * (1 - value) / items + square / (4 * items * items))
    return Interval(value, min(value, max(0.0, middle - reach)), max(value, min(1.0, middle + reach)))


def difference_of_shares(own: Interval | None, reference: Interval | None) -> Interval | None:
    """One `share` minus an independent one, by the score intervals of both (Newcombe 1998b, method 10)."""
    if own is None or reference is None:
        return None
    value = own.value - reference.value
    below = math.hypot(own.value - own.low, reference.high - reference.value)
    above = math.hypot(own.high - own.value, reference.value - reference.low)
    return Interval(value, value - below, value + above)


def _average(counts: Mapping[int, int]) -> float:
    return sum(value * items for value, items in counts.items()) / sum(counts.values())


def _means(counts: Mapping[int, int], seed: int) -> NDArray[np.float64]:
    """The mean of each resample of a histogram [RESAMPLES]: drawing n items is one multinomial draw."""
    values = np.asarray(list(counts), dtype=np.float64)
    items = np.asarray(list(counts.values()), dtype=np.int64)
    generator, number = np.random.default_rng(seed), int(items.sum())
    chunks = [generator.multinomial(number, items / number, AT_ONCE) @ values for _ in range(RESAMPLES // AT_ONCE)]
    return np.concatenate(chunks) / number


def _draws(count: int, seed: int) -> NDArray[np.int64]:
    """The item indices of each draw [RESAMPLES, count]; equal seeds give equal draws."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def _interval(value: float, statistics: NDArray[np.float64]) -> Interval:
    """`value` with the bounds of the middle `LEVEL` of `statistics` [RESAMPLES]."""
    low, high = np.quantile(statistics, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
