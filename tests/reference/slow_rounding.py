"""Rounding and GPTQ done slowly, in plain Python and float64: what the quantising techniques are compared with."""

from math import ceil

import numpy
from numpy.typing import NDArray

Matrix = NDArray[numpy.float64]


def code(value: float, scale: float, bits: int) -> int:
    """The code nearest to value / scale."""
    half = 2 ** (bits - 1)
    return int(min(max(round(value / scale), -half), half - 1)) if scale else 0


def scale_of(weight: list[float], importance: list[float], bits: int) -> float:
    """The float16 scale of one group that costs least, of 20 candidates, each refitted by least squares."""
    half = 2 ** (bits - 1)
    extreme = max(weight, key=abs)
    best, least = 0.0, sum(a * w * w for a, w in zip(importance, weight, strict=True))
    for clip in numpy.linspace(half / (half - 1), 0.6, 20):
        codes = [code(w, -extreme * clip / half, bits) for w in weight]
        square = sum(a * q * q for a, q in zip(importance, codes, strict=True))
        if not square:
            continue
        scale = sum(a * w * q for a, w, q in zip(importance, weight, codes, strict=True)) / square
        cost = sum(a * (w - q * scale) ** 2 for a, w, q in zip(importance, weight, codes, strict=True))
        if cost < least:
            best, least = scale, cost
    return float(numpy.float16(best))


def gptq(
    weight: Matrix, gram: Matrix, bits: int, group: int, pattern: tuple[int, int] = (1, 1), damping: float = 0.01
) -> tuple[NDArray[numpy.int64], Matrix]:
    """GPTQ's algorithm 1, one column and one row at a time; returns codes and scales.

    A pattern (N, M) prunes to N of M as SparseGPT does; what is removed after the current M is foreseen for a scale.
    """
    rows, columns = weight.shape
    damped = gram + damping * numpy.mean(numpy.diag(gram)) * numpy.eye(columns)
    upper = numpy.linalg.cholesky(numpy.linalg.inv(damped)).T
    price = 1 / numpy.diag(upper) ** 2
    zero, left = weight == 0, weight.copy()
    removed = zero.copy()
    codes = numpy.zeros((rows, columns), dtype=numpy.int64)
    scales = numpy.zeros((rows, -(-columns // group)))
    for j in range(columns):
        for i in range(rows):
            if j % pattern[1] == 0:
                _remove(removed[i], zero[i], left[i] ** 2 * price, j, pattern)
            if j % group == 0:
                for later in range(j + 1, min(j + group, columns)):
                    if later % pattern[1] == 0:
                        _remove(removed[i], zero[i], left[i] ** 2 * price, later, pattern)
                kept = numpy.where(removed[i], 0, left[i])[j : j + group]
                scales[i, j // group] = scale_of(kept.tolist(), price[j : j + group].tolist(), bits)
            scale = scales[i, j // group]
            codes[i, j] = 0 if removed[i, j] else code(left[i, j], scale, bits)
            left[i, j:] -= (left[i, j] - codes[i, j] * scale) / upper[j, j] * upper[j, j:]
    return codes, scales


def _remove(
    removed: NDArray[numpy.bool_], zero: NDArray[numpy.bool_], score: Matrix, start: int, pattern: tuple[int, int]
) -> None:
    """Choose what one row loses of the M columns from `start`: first what is zero already, then the lowest scores."""
    members = range(start, min(start + pattern[1], len(score)))
    order = sorted(members, key=lambda j: -1 if zero[j] else score[j])
    removed[members.start : members.stop] = zero[members.start : members.stop]
    removed[order[: len(members) - ceil(len(members) * pattern[0] / pattern[1])]] = True
