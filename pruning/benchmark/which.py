"""The page "which method for which goal", written from measured rows alone.

`python -m pruning.benchmark.which docs/results/figures/pruning.json docs/results/which-method.md`; `make bench-pruning`
measures the rows.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from pruning.benchmark.measured import Result, read
from pruning.errors import DataError
from server.storage.files import write_atomically

GOALS = (
    ("the pattern of CUDA's sparse kernels", r"2:4"),
    ("on a processor, the bytes and speed of 2:4 with less loss", r"\d+:64.*"),
    ("zeros anywhere, where only the loss counts", r"\d+ ?%"),
    ("an ordinary smaller model, for every runtime", r"structured.*"),
    ("a deployment's own language, with smaller embeddings", r"fewer tokens"),
    ("the smallest file", r".*int\d.*"),
)
"""Each goal and the groups of rows that serve it."""
UNPRUNED = {"dense": "16 bits", "int8": "8 bits in groups of 32"}
"""The models that no row made, by their keys in a result."""
NEAR = 1.05
"""Of two methods whose perplexities differ by less than this factor, the quicker one is worth a look."""


class Method(NamedTuple):
    """The rows of one name and group at all seeds."""

    group: str
    name: str
    rows: tuple[Result, ...]

    @property
    def perplexity(self) -> float:
        """The mean over seeds."""
        return mean(row.perplexity["pruned"] for row in self.rows)

    @property
    def ratio(self) -> float:
        """The mean over seeds of perplexity over that of the dense model in the same run."""
        return mean(row.perplexity["pruned"] / row.perplexity["dense"] for row in self.rows)

    @property
    def seconds(self) -> float:
        """Of one core: the mean over seeds."""
        return mean(row.seconds * row.threads for row in self.rows)

    @property
    def bytes(self) -> float:
        """The mean over seeds."""
        return mean(row.bytes["pruned"] for row in self.rows)


def page(rows: Sequence[Result]) -> str:
    """The page in Markdown: goals with what served each best, then every group."""
    head = [
        "# Which method for which goal",
        "",
        "Generated from `docs/results/figures/pruning.json` by `python -m pruning.benchmark.which`; do not edit it by hand.",
    ]
    if not rows:
        return "\n".join([*head, "", "Nothing has been measured yet: run `make bench-pruning`.", ""])
    methods = _methods(rows)
    groups = list(dict.fromkeys(method.group for method in methods))
    lines = [
        *head,
        "Perplexities compare within this page alone: one model, one text. Seconds are of cores, each of which other",
    ]
    lines += ["work may have shared: they rank methods, no more.", _beside(rows[0])]
    lines += ["", *_goals(methods, groups)]
    for group in groups:
        lines += ["", f"## {group}", "", *_table([method for method in methods if method.group == group])]
    return "\n".join([*lines, "", *_frontier(methods, rows[0]), ""])


def _beside(row: Result) -> str:
    """What every row has to be held against: the dense model, and the same at 8 bits."""
    parts = [f"{name}: {row.perplexity[key]:.2f}, {row.bytes[key] / 1e6:.1f} MB" for key, name in UNPRUNED.items()]
    return f"Unpruned, {'; '.join(parts)}."


def _methods(rows: Sequence[Result]) -> list[Method]:
    """The rows by group, in the order in which groups were measured, and by name, the least perplexity first."""
    keys = list(dict.fromkeys((row.group, row.name) for row in rows))
    methods = [Method(*key, tuple(row for row in rows if (row.group, row.name) == key)) for key in keys]
    order = {group: number for number, group in enumerate(dict.fromkeys(row.group for row in rows))}
    return sorted(methods, key=lambda method: (order[method.group], method.perplexity))


def _goals(methods: Sequence[Method], groups: Sequence[str]) -> list[str]:
    """For each goal and each group that serves it, the method of least perplexity, and a quicker one that is near."""
    lines = [
        "| goal | group | best | perplexity, of dense | MB | quicker and within 5 % |",
        "|---|---|---|---|---|---|",
    ]
    for goal, pattern in GOALS:
        for group in groups:
            if re.fullmatch(pattern, group):
                best, *others = [method for method in methods if method.group == group]
                near = [m for m in others if m.perplexity < NEAR * best.perplexity and m.seconds < best.seconds]
                quick = min(near, key=lambda method: method.seconds, default=None)
                beside = f"{quick.name}, {quick.seconds / best.seconds:.2f} of the time" if quick else "-"
                cells = [goal, group, best.name, f"{best.perplexity:.2f}, {best.ratio:.2f} x", _size(best), beside]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def _table(methods: Sequence[Method]) -> list[str]:
    """One group, the least perplexity first."""
    lines = ["| method | perplexity | of dense | MB | seconds | seeds |", "|---|---|---|---|---|---|"]
    for method in methods:
        values = [row.perplexity["pruned"] for row in method.rows]
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        cells = [method.name, f"{method.perplexity:.2f}{spread}", f"{method.ratio:.2f} x", _size(method)]
        lines.append(f"| {' | '.join([*cells, f'{method.seconds:.0f}', str(len(values))])} |")
    return lines


def _frontier(methods: Sequence[Method], row: Result) -> list[str]:
    """Every method, and the unpruned models, that nothing beats in bytes and perplexity at once."""
    points = [(method.bytes, method.perplexity, f"{method.group}, {method.name}") for method in methods]
    points += [(row.bytes[key], row.perplexity[key], f"unpruned, {name}") for key, name in UNPRUNED.items()]
    best = [one for one in points if not any(_beats(other, one) for other in points)]
    names = [f"- {size / 1e6:.1f} MB: {name} ({perplexity:.2f})" for size, perplexity, name in sorted(best)]
    return ["## What nothing else beats in bytes and perplexity at once", "", *names]


def _beats(one: tuple[float, float, str], other: tuple[float, float, str]) -> bool:
    """Whether `one` is no worse in both and better in one."""
    return one[:2] != other[:2] and one[0] <= other[0] and one[1] <= other[1]


def _size(method: Method) -> str:
    """Megabytes."""
    return f"{method.bytes / 1e6:.1f}"


def main(arguments: Sequence[str]) -> int:
    """Write the page; returns the exit code."""
    if len(arguments) != 2:
        print("usage: python -m pruning.benchmark.which ROWS.json PAGE.md", file=sys.stderr)
        return 2
    try:
        write_atomically(Path(arguments[1]), page(list(read(Path(arguments[0])).values())).encode())
    except DataError as error:
        print(f"secateur: {error.message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
