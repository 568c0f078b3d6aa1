"""Draws the fronts as SVG files without scripts or fonts, for light and dark backgrounds."""

import math
from collections.abc import Callable, Sequence
from html import escape

from tests.benchmarks.pareto.front.dominance import Point, by_bytes, by_speed, front

WIDTH, HEIGHT = 1190, 530
LEFT, RIGHT, TOP, BOTTOM = 64, 620, 40, 48
"""Margins of the drawing; the names are in the right one."""
LINE = 17
"""Height of a name."""
WORST = 2.0
"""Perplexities beyond it are left out of the drawing, not of the table."""
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; } .small { font-size: 11px; fill: #57606a; }
.back { fill: #ffffff; } .axis { stroke: #8c959f; } .grid { stroke: #d0d7de; stroke-width: .6; }
.dense { fill: #2f6fb0; } .pruned { fill: #b3541e; } .peer { fill: #8250a5; }
.front { fill: none; stroke: #b3541e; stroke-width: 1.4; }
.unpruned { fill: none; stroke: #2f6fb0; stroke-dasharray: 4 3; }
.number { font-size: 10px; font-weight: 600; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9da7b3; } .back { fill: #0d1117; } .axis { stroke: #6e7681; }
  .grid { stroke: #30363d; } .dense { fill: #6cb6ff; } .pruned { fill: #f0883e; } .peer { fill: #d2a8ff; }
  .front { stroke: #f0883e; } .unpruned { stroke: #6cb6ff; }
}
"""
KINDS = {"pruned": "pruned", "dense": "not pruned", "peer": "other engines"}


def drawings(found: Sequence[Point], event: str) -> dict[str, str]:
    """Quality against bytes, and against speed in `event` where that was measured."""
    shown = [point for point in found if point.ratio <= WORST]
    made = {"bytes": svg("Perplexity against megabytes", "MB, logarithmic", shown, _megabytes, by_bytes)}
    if any(point.speed(event) for point in shown):
        quick = [point for point in shown if point.speed(event)]
        made["speed"] = svg(
            f"Perplexity against tokens/s at {event}", "tokens/s, logarithmic", quick, by_speed(event), by_speed(event)
        )
    return made


def svg(
    title: str, across: str, shown: Sequence[Point], value: Callable[[Point], float], gain: Callable[[Point], float]
) -> str:
    """One plot: every candidate a mark, the front a line, the front of the unpruned ones a dashed line."""
    best = sorted(front(shown, gain), key=value)
    unpruned = sorted(front([point for point in shown if point.row.kind != "pruned"], gain), key=value)
    low, high = min(map(value, shown)) * 0.94, max(map(value, shown)) * 1.06
    top = max(point.ratio for point in shown)

    def x(point: Point) -> float:
        return LEFT + math.log(value(point) / low) / math.log(high / low) * (WIDTH - LEFT - RIGHT)

    def y(ratio: float) -> float:
        return HEIGHT - BOTTOM - (ratio - 0.98) / (top * 1.03 - 0.98) * (HEIGHT - TOP - BOTTOM)

    parts = _frame(title, across, (low, high), top, y)
    for line, kind in ((unpruned, "unpruned"), (best, "front")):
        parts.append(f'<polyline class="{kind}" points="{" ".join(f"{x(p):.1f},{y(p.ratio):.1f}" for p in line)}"/>')
    parts += [_mark(point.row.kind, x(point), y(point.ratio)) for point in shown]
    for number, point in enumerate(best, 1):
        parts.append(f'<text class="number" x="{x(point) + 6:.1f}" y="{y(point.ratio) - 6:.1f}">{number}</text>')
    return _file(title, [*parts, *_names(best, value, across.partition(",")[0])])


def _names(best: Sequence[Point], value: Callable[[Point], float], unit: str) -> list[str]:
    """The candidates of the front by number, then what the marks mean."""
    left, parts = WIDTH - RIGHT + 24, []
    for number, point in enumerate(best, 1):
        y = TOP + LINE * number
        parts.append(_mark(point.row.kind, left, y - 4))
        text = f"{number} {point.row.name}: {value(point):.0f} {unit}, {point.ratio:.2f} x"
        parts.append(f'<text class="small" x="{left + 10}" y="{y}">{escape(text)}</text>')
    for number, (kind, text) in enumerate(KINDS.items()):
        y = HEIGHT - BOTTOM - LINE * (len(KINDS) - number)
        parts += [_mark(kind, left, y - 4), f'<text x="{left + 10}" y="{y}">{text}</text>']
    parts.append(
        f'<text class="small" x="{left - 4}" y="{HEIGHT - BOTTOM}">line: front; dashed: front without pruning</text>'
    )
    return parts


def _frame(title: str, across: str, ends: tuple[float, float], top: float, y: Callable[[float], float]) -> list[str]:
    """Title, axes and ticks."""
    parts = [f'<text x="{LEFT}" y="22" font-weight="600">{escape(title)}</text>']
    step = 0.05 if top < 1.4 else 0.1
    for count in range(int((top - 1) / step) + 2):
        ratio = 1 + count * step
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(ratio):.1f}" y2="{y(ratio):.1f}"/>')
        parts.append(f'<text class="small" x="{LEFT - 8}" y="{y(ratio) + 4:.1f}" text-anchor="end">{ratio:.2f}</text>')
    low, high = ends
    for tick in _ticks(low, high):
        x = LEFT + math.log(tick / low) / math.log(high / low) * (WIDTH - LEFT - RIGHT)
        parts.append(f'<text class="small" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text class="small" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(across)}</text>')
    up = TOP + (HEIGHT - TOP - BOTTOM) / 2
    turned = f'x="16" y="{up}" text-anchor="middle" transform="rotate(-90 16 {up})"'
    return [*parts, f'<text class="small" {turned}>perplexity, of the 16-bit base</text>']


def _ticks(low: float, high: float) -> list[int]:
    """About six round values in equal ratios."""
    found: list[int] = []
    for count in range(7):
        exact = low * (high / low) ** (count / 6)
        unit = 10 ** max(math.floor(math.log10(exact)) - 1, 0)
        rounded = round(exact / unit) * unit
        if low <= rounded <= high and rounded not in found:
            found.append(rounded)
    return found


def _mark(kind: str, x: float, y: float) -> str:
    """A square if pruned, a circle if not, a diamond for other engines."""
    if kind == "pruned":
        return f'<rect class="pruned" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    if kind == "dense":
        return f'<circle class="dense" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    return f'<path class="peer" d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5-5.5 5.5-5.5-5.5z"/>'


def _megabytes(point: Point) -> float:
    return point.row.bytes / 1e6


def _file(title: str, parts: Sequence[str]) -> str:
    """The SVG file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>{"".join(parts)}</svg>\n'
    )
