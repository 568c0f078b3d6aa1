"""The fronts: candidates that no other one beats in both quality and bytes, or quality and speed."""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from tests.benchmarks.pareto.results import Measured, Results

NEAR = 1e-9


class Point(NamedTuple):
    """A candidate with the figures that its base makes comparable."""

    row: Measured
    ratio: float
    """Perplexity per token of the base, relative to the base: geometric mean over the texts."""
    ratios: dict[str, float]
    """The same on each text."""
    bits_a_byte: dict[str, float]
    """Bits for a byte of each text, which compare across vocabularies and bases."""

    def speed(self, event: str) -> float:
        """Median over the rounds; 0 where it was not measured."""
        runs = self.row.speed.get(event)
        return median(runs) if runs else 0.0


def points(results: Results, base: str) -> list[Point]:
    """The candidates of one base beside its 16-bit model, best first; none until that is measured."""
    rows = [row for row in results.rows if row.base == base]
    dense = next((row for row in rows if row.kind == "dense" and row.bits == 16), None)
    if dense is None:
        return []
    return sorted((_point(row, dense, results) for row in rows), key=lambda point: point.ratio)


def front(candidates: Sequence[Point], gain: Callable[[Point], float]) -> list[Point]:
    """Those of `candidates` that no other one equals in quality and `gain` and beats in one; `gain` 0 is unknown."""
    known = [point for point in candidates if gain(point)]
    return [one for one in known if not any(_beats(other, one, gain) for other in known)]


def by_bytes(point: Point) -> float:
    """Fewer bytes are better."""
    return -float(point.row.bytes)


def by_speed(event: str) -> Callable[[Point], float]:
    """More tokens a second are better."""
    return lambda point: point.speed(event)


def _beats(one: Point, other: Point, gain: Callable[[Point], float]) -> bool:
    no_worse = one.ratio <= other.ratio + NEAR and gain(one) >= gain(other)
    return no_worse and (one.ratio < other.ratio - NEAR or gain(one) > gain(other))


def _point(row: Measured, dense: Measured, results: Results) -> Point:
    nats, reference = row.quality.nats, dense.quality.nats
    ratios = {name: math.exp((nats[name] - reference[name]) / results.texts[name][row.base]) for name in nats}
    mean = math.exp(sum(math.log(ratio) for ratio in ratios.values()) / len(ratios))
    bits = {name: value / math.log(2) / results.texts[name]["bytes"] for name, value in nats.items()}
    return Point(row, mean, ratios, bits)
