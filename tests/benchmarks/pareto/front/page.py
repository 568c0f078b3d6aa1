"""Writes the page of the fronts: a table for each base, the front marked, and the plots beside the results."""

from pathlib import Path

from server.storage.files import write_atomically
from tests.benchmarks.pareto.front import plot
from tests.benchmarks.pareto.front.dominance import Point, by_bytes, by_speed, front, points
from tests.benchmarks.pareto.plan import Base, ParetoPlan
from tests.benchmarks.pareto.results import Results

EVENTS = ("batch 1", "batch 8", "batch 16", "prompt 512", "first of 128")
TITLES = ("1 stream", "8", "16", "prompt of 512", "first token, ms")
RACED = "batch 1"
"""The event of the drawn front of speed."""
HEAD = """\
# The front

Generated from `docs/results/figures/front/pareto.json` by `make pareto`; do not edit it by hand.

Every candidate reads the same characters: {texts}. Perplexity is relative to the 16-bit base of its table, per
token of that base whatever the candidate's own vocabulary, as the geometric mean over the texts. Choices are answers
picked right of four by PMI, {items} questions of the Debian FAQ. Megabytes are the weights as stored and as resident.
**B** marks the front of quality and bytes, **1** and **16** the fronts of quality and tokens/s at 1 and 16 streams: no
other candidate of the table is as good in both and better in one. Ours are computed by the runner that serves them,
llama.cpp's by its own library on the same ids.
"""


def write(plan: ParetoPlan, results: Results, page: Path, pictures: Path) -> None:
    """Write the page, and both plots of each base that has figures."""
    parts = [HEAD.format(texts=_texts(plan, results), items=results.rows[0].quality.items if results.rows else 0)]
    parts += [plan.notes, ""] if plan.notes else []
    for base in plan.bases:
        found = points(results, base.name)
        if not found:
            continue
        parts += [f"## {base.note}", "", *table(base, found), ""]
        pictures.mkdir(parents=True, exist_ok=True)
        for name, drawing in plot.drawings(found, RACED).items():
            file = pictures / f"pareto-{base.name}-{name}.svg"
            write_atomically(file, drawing.encode())
            parts += [f"![{base.note}: quality against {name}](figures/front/{file.name})", ""]
    parts += [_speed_note(results), ""]
    write_atomically(page, "\n".join(parts).encode())


def tables(plan: ParetoPlan, results: Results) -> str:
    """All tables."""
    parts = []
    for base in plan.bases:
        if found := points(results, base.name):
            parts += [base.note, "", *table(base, found), ""]
    return "\n".join(parts)


def table(base: Base, found: list[Point]) -> list[str]:
    """The candidates of one base, best first."""
    texts = list(found[0].ratios)
    small = front(found, by_bytes)
    quick = {streams: front(found, by_speed(f"batch {streams}")) for streams in (1, 16)}
    titles = ["candidate", "front", "MB", "perplexity", *texts, "bits a byte", "choices", *TITLES, "trained on"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for point in found:
        marks = ["B"] if point in small else []
        marks += [str(streams) for streams, those in quick.items() if point in those]
        row = point.row
        name = f"**{row.name}**" if row.kind == "pruned" else row.name
        cells = [name, " ".join(marks), f"{row.bytes / 1e6:.1f}", f"{point.ratio:.3f} x"]
        cells += [f"{point.ratios[text]:.3f}" for text in texts]
        cells += [f"{sum(point.bits_a_byte.values()) / len(texts):.3f}", f"{row.quality.choices:.2f}"]
        cells += [f"{speed:.0f}" if (speed := point.speed(event)) else "-" for event in EVENTS]
        cells += [f"{row.trained // 1000}k" if row.trained else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _texts(plan: ParetoPlan, results: Results) -> str:
    """The held-out texts and their lengths."""
    return ", ".join(f"{text.name} ({results.texts[text.name]['bytes'] // 1000} kB)" for text in plan.texts)


def _speed_note(results: Results) -> str:
    """Where and how speed was measured."""
    units = {row.unit for row in results.rows if row.speed}
    if not units:
        return "Speed was not measured yet: `make pareto-speed`."
    clock = " and ".join(sorted(units))
    return f"Speed: one core of {results.machine}, all candidates in turns, median of the rounds, in {clock}."
