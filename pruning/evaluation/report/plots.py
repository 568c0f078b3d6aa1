"""The plots of the page as inline SVG; the page's style sheet colours them for light and dark."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from pruning.evaluation.comparison.results import Results
from pruning.evaluation.scoring.measures import LABELS

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 16, 44
BINS = 24


class Axis(NamedTuple):
    """A linear scale from values `low`..`high` to pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float
    least: float = 0.0
    """Smallest distance between ticks."""

    def at(self, value: float) -> float:
        """The pixel of `value`."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round values between `low` and `high`."""
        rough = max((self.high - self.low) / 5, self.least)
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def quality(results: Results) -> str:
    """The ranking measure with its interval over megabytes, for every model of the table."""
    points = [(row.bytes / 1e6, row.measures[results.measure]) for row in results.rows]
    x = _across([0, max(size for size, _ in points) * 1.12])
    y = _up([bound for _, found in points for bound in (found.low, found.high)])
    parts = [_frame(x, y, "megabytes", LABELS[results.measure])]
    for number, ((size, found), row) in enumerate(zip(points, results.rows, strict=True)):
        place, kind = x.at(size), row.role
        parts.append(_line(place, y.at(found.low), place, y.at(found.high), kind))
        parts.append(f'<circle class="{kind}" cx="{place:.1f}" cy="{y.at(found.value):.1f}" r="5"/>')
        label = row.name.split(" in ")[0]
        parts.append(_text(LEFT + 8, TOP + 14 + 16 * number, f"{label}: {size:.3g} MB", f"label {kind}", "start"))
    return _svg("Quality against bytes: lower and further left is better", parts)


def changes(results: Results) -> str:
    """Histogram of the change per item from the base: bars for pruned, an outline for the quantised base."""
    quantised, pruned = results.changes["quantised"], results.changes["pruned"]
    low, high = min(0.0, *quantised, *pruned), max(0.0, *quantised, *pruned)
    if low == high:
        high = low + 1
    x = _across([low, high])
    counts = [_counts(values, low, high) for values in (pruned, quantised)]
    y = Axis(0, max(max(count) for count in counts) * 1.05, HEIGHT - BOTTOM, TOP, 1)
    parts = [_frame(x, y, f"change of {LABELS[results.measure]}; to the right is worse", "items")]
    width = (high - low) / BINS
    outline = []
    for index in range(BINS):
        left, right = x.at(low + index * width), x.at(low + (index + 1) * width)
        top = y.at(counts[0][index])
        parts.append(
            f'<rect class="pruned" x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 1, 1):.1f}" '
            f'height="{max(y.start - top, 0):.1f}"/>'
        )
        outline.append(f"{left:.1f},{y.at(counts[1][index]):.1f} {right:.1f},{y.at(counts[1][index]):.1f}")
    parts.append(f'<polyline class="quantised" points="{" ".join(outline)}"/>')
    parts.append(_line(x.at(0), TOP, x.at(0), y.start, "zero"))
    parts.append(_text(WIDTH - RIGHT, TOP + 12, "bars: pruned", "label pruned", "end"))
    parts.append(_text(WIDTH - RIGHT, TOP + 30, "outline: quantised base", "label quantised", "end"))
    return _svg("How much each item changed", parts)


def layers(results: Results) -> str:
    """Sparsity and, if recorded, layer error of each weight by block; empty if the artifact has neither."""
    drawn = [_by_block(name, results.layers[name]) for name in ("sparsity", "error") if results.layers.get(name)]
    return "".join(drawn)


def _by_block(name: str, values: dict[str, float]) -> str:
    """A dot per weight, and a line through the mean of each block."""
    blocks: dict[int, list[float]] = defaultdict(list)
    for weight, value in values.items():
        if found := re.search(r"\.(\d+)\.", weight):
            blocks[int(found[1])].append(value)
    if not blocks:
        return ""
    x = Axis(-0.5, max(blocks) + 0.5, LEFT, WIDTH - RIGHT, 1)
    y = Axis(0, max(max(map(max, blocks.values())) * 1.1, 1e-9), HEIGHT - BOTTOM, TOP)
    label = {"sparsity": "fraction of zeros", "error": "relative error of the layer's output"}[name]
    parts = [_frame(x, y, "block", label)]
    parts += [
        f'<circle class="pruned faint" cx="{x.at(block):.1f}" cy="{y.at(value):.1f}" r="3"/>'
        for block, each in sorted(blocks.items())
        for value in each
    ]
    line = " ".join(f"{x.at(block):.1f},{y.at(fmean(each)):.1f}" for block, each in sorted(blocks.items()))
    parts.append(f'<polyline class="pruned" points="{line}"/>')
    return _svg(f"{label[0].upper()}{label[1:]}, by block: a dot for each weight, a line through the means", parts)


def _counts(values: Sequence[float], low: float, high: float) -> list[int]:
    """The number of values in each of `BINS` equal bins."""
    counts = [0] * BINS
    for value in values:
        counts[min(int((value - low) / (high - low) * BINS), BINS - 1)] += 1
    return counts


def _across(values: Sequence[float]) -> Axis:
    """A horizontal axis over `values`."""
    return Axis(min(values), max(values), LEFT, WIDTH - RIGHT)


def _up(values: Sequence[float]) -> Axis:
    """A vertical axis over `values` with a margin; it starts at 0 rather than below."""
    low, high = min(values), max(values)
    room = (high - low) * 0.15 or max(abs(high) * 0.1, 0.01)
    return Axis(low - room if low - room > 0 or low < 0 else 0, high + room, HEIGHT - BOTTOM, TOP)


def _frame(x: Axis, y: Axis, across: str, up: str) -> str:
    """Both axes with ticks, labelled `across` and `up`."""
    parts = [_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis")]
    for tick in x.ticks():
        parts.append(_text(x.at(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "tick", "middle"))
    for tick in y.ticks():
        parts.append(_line(LEFT, y.at(tick), WIDTH - RIGHT, y.at(tick), "grid"))
        parts.append(_text(LEFT - 8, y.at(tick) + 4, f"{tick:g}", "tick", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, across, "tick", "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="tick" x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{up}</text>'
    )
    return "".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    """A text element; not escaped, since no text here comes from a user."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _svg(title: str, parts: Sequence[str]) -> str:
    """A figure with its caption."""
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{title}</figcaption>{drawing}</figure>"
