"""Draws the losses of each layer as one SVG file without scripts or fonts, for light and dark backgrounds."""

from collections.abc import Mapping, Sequence
from html import escape

from pruning.evaluation.report.layer_losses import MEASURES, Layers

WIDTH, PANEL, BAR_AREA, LEFT, TOP = 860, 46, 330, 130, 64
"""Pixels: drawing width, height of a row of bars, width of a column, left margin for names, height of a heading."""

TICK = 22
"""Pixels of a block's number: three digits and a margin."""
APART = (1, 2, 5, 10, 20, 50, 100)
"""Steps between numbered blocks."""

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.back { fill: #ffffff; } .axis { stroke: #8c959f; } .small { font-size: 10px; fill: #57606a; }
.tick { text-anchor: middle; }
.zeros { fill: #2f6fb0; } .error { fill: #b3541e; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .back { fill: #0d1117; } .axis { stroke: #6e7681; } .small { fill: #9da7b3; }
  .zeros { fill: #6cb6ff; } .error { fill: #f0883e; }
}
"""


def svg(name: str, grids: list[Layers]) -> str:
    """Bars of the sparsity and relative output error of each matrix in each block of the artifact `name`."""
    parts, y = [], 44
    for layers in grids:
        parts.append(_step(layers, y))
        y += TOP + PANEL * len(layers.matrices) + 30
    title = escape(f"What each layer of {name} lost")
    steps = "; ".join(layers.title for layers in grids)
    about = escape(f"Bars by block, a row for each matrix: fraction of zeros and relative output error. {steps}.")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" '
        f'role="img" aria-labelledby="title about">\n'
        f'<title id="title">{title}</title>\n<desc id="about">{about}</desc>\n<style>{STYLE}</style>\n'
        f'<rect class="back" width="{WIDTH}" height="{y}"/>\n<text x="12" y="26" font-weight="bold">{title}</text>\n'
        f"{''.join(parts)}</svg>\n"
    )


def _step(layers: Layers, y: int) -> str:
    """One step: a column of sparsity and one of errors, each with a common scale."""
    errors = {cell: loss.error for cell, loss in layers.losses.items()}
    most = max(errors.values()) or 1.0
    measure = next(iter(layers.losses.values())).measure
    right = LEFT + BAR_AREA + 40
    lines = [
        _text(12, y + 14, f"{layers.title}: {MEASURES[measure]}"),
        _text(LEFT, y + 40, "sparsity, 0 to 100 %", "small"),
        _text(right, y + 40, f"relative output error, 0 to {most:.2%}", "small"),
    ]
    for row, matrix in enumerate(layers.matrices):
        base = y + TOP + PANEL * (row + 1) - 14
        lines.append(_text(12, base, matrix))
        lines.append(_bars(LEFT, base, _row(layers, matrix, layers.sparsity), 1.0, "zeros"))
        lines.append(_bars(right, base, _row(layers, matrix, errors), most, "error"))
    last = y + TOP + PANEL * len(layers.matrices) + 4
    lines += [_text(12, last, "block", "small"), _ticks(LEFT, last, layers.blocks), _ticks(right, last, layers.blocks)]
    return "".join(lines)


def _row(layers: Layers, matrix: str, values: Mapping[tuple[int, str], float]) -> dict[str, float | None]:
    """The values of one matrix by the label of their bar; None for a block without the matrix."""
    return {f"{matrix}, block {block}": values.get((block, matrix)) for block in layers.blocks}


def _bars(x: int, base: int, values: Mapping[str, float | None], most: float, kind: str) -> str:
    """Bars of `values` upward from `base`, full height at `most`, each with its value as a tooltip."""
    step = BAR_AREA / len(values)
    bars = [f'<line class="axis" x1="{x}" y1="{base}.5" x2="{x + BAR_AREA}" y2="{base}.5"/>\n']
    for number, (name, value) in enumerate(values.items()):
        if value is not None:
            height = (PANEL - 12) * value / most
            bars.append(
                f'<rect class="{kind}" x="{x + number * step:.2f}" y="{base - height:.2f}" width="{step * 0.8:.2f}" '
                f'height="{height:.2f}"><title>{escape(name)}: {value:.3%}</title></rect>\n'
            )
    return "".join(bars)


def _ticks(x: int, y: int, blocks: Sequence[int]) -> str:
    """The number of each block below its bar, or of every n-th block if space is short."""
    step = BAR_AREA / len(blocks)
    apart = next(count for count in APART if count * step >= TICK)
    return "".join(
        f'<text class="small tick" x="{x + (place + 0.4) * step:.2f}" y="{y}">{block}</text>\n'
        for place, block in enumerate(blocks)
        if place % apart == 0
    )


def _text(x: int, y: int, content: str, kind: str = "label") -> str:
    """A text element, escaped."""
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(content)}</text>\n'
