"""The page "which method for which goal", written from measured rows alone.

`python -m pruning.evaluation.which docs/figures/pruning.json docs/which-method.md`; `make bench-pruning`
measures the rows.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import msgspec

from pruning.errors import DataError
from pruning.weights import write_bytes

GOALS = (
    ("the pattern of CUDA's sparse kernels", r"2:4"),
    ("on a processor, the bytes and speed of 2:4 with less loss", r"\d+:64"),
    ("zeros anywhere, where only the loss counts", r"\d+ ?%"),
    ("an ordinary smaller model, for every runtime", r"structured.*"),
    ("the smallest file", r".*int\d.*"),
)
"""Each goal and the groups of rows that serve it."""
NEAR = 1.05
"""Of two methods whose perplexities differ by less than this factor, the quicker one is worth a look."""


class Row(msgspec.Struct, frozen=True):
    """One measured run."""

    name: str
    group: str
    """Rows of one group can be compared: "2:4", "32:64", "50 %", "structured 20 %", "int4"."""
    recipe: dict[str, Any]
    seed: int
    perplexity: float
    bytes: int
    seconds: float
    dense_perplexity: float


class Method(NamedTuple):
    """The rows of one name and group at all seeds."""

    group: str
    name: str
    rows: tuple[Row, ...]

    @property
    def perplexity(self) -> float:
        """The mean over seeds."""
        return mean(row.perplexity for row in self.rows)

    @property
    def ratio(self) -> float:
        """The mean over seeds of perplexity over that of the dense model in the same run."""
        return mean(row.perplexity / row.dense_perplexity for row in self.rows)

    @property
    def seconds(self) -> float:
        """The mean over seeds."""
        return mean(row.seconds for row in self.rows)

    @property
    def bytes(self) -> float:
        """The mean over seeds."""
        return mean(row.bytes for row in self.rows)


def page(rows: Sequence[Row]) -> str:
    """The page in Markdown: goals with what served each best, then every group."""
    head = [
        "# Which method for which goal",
        "",
        "Generated from `docs/figures/pruning.json` by `python -m pruning.evaluation.which`; do not edit it by hand.",
    ]
    if not rows:
        return "\n".join([*head, "", "Nothing has been measured yet: run `make bench-pruning`.", ""])
    methods = _methods(rows)
    groups = list(dict.fromkeys(method.group for method in methods))
    lines = [*head, "Perplexities compare within this page alone: one model, one text.", "", *_goals(methods, groups)]
    for group in groups:
        lines += ["", f"## {group}", "", *_table([method for method in methods if method.group == group])]
    return "\n".join([*lines, "", *_frontier(methods), ""])


def _methods(rows: Sequence[Row]) -> list[Method]:
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
        values = [row.perplexity for row in method.rows]
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        cells = [method.name, f"{method.perplexity:.2f}{spread}", f"{method.ratio:.2f} x", _size(method)]
        lines.append(f"| {' | '.join([*cells, f'{method.seconds:.0f}', str(len(values))])} |")
    return lines


def _frontier(methods: Sequence[Method]) -> list[str]:
    """Every method that no other beats in bytes and perplexity at once, the smallest first."""
    best = [one for one in methods if not any(_beats(other, one) for other in methods)]
    ordered = sorted(best, key=lambda method: method.bytes)
    names = [f"- {_size(one)} MB: {one.group}, {one.name} ({one.perplexity:.2f})" for one in ordered]
    return ["## What nothing else beats in bytes and perplexity at once", "", *names]


def _beats(one: Method, other: Method) -> bool:
    """Whether `one` is no worse in both and better in one."""
    mine, its = (one.bytes, one.perplexity), (other.bytes, other.perplexity)
    return mine != its and mine[0] <= its[0] and mine[1] <= its[1]


def _size(method: Method) -> str:
    """Megabytes."""
    return f"{method.bytes / 1e6:.1f}"


def read(path: Path) -> list[Row]:
    """The rows in `path`; raises DataError where they are not."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Row])
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path} holds no measured rows: {error}") from None


def main(arguments: Sequence[str]) -> int:
    """Write the page; returns the exit code."""
    if len(arguments) != 2:
        print("usage: python -m pruning.evaluation.which ROWS.json PAGE.md", file=sys.stderr)
        return 2
    try:
        write_bytes(Path(arguments[1]), page(read(Path(arguments[0]))).encode())
    except DataError as error:
        print(f"secateur: {error.message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
