"""Writes the page "which method for which goal" from measured rows alone; `make bench-pruning` runs it.

python -m pruning.benchmark.which_method docs/results/figures/pruning.json docs/results/which-method.md
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from pruning.benchmark.results import RowResult, read
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
"""Each goal with a pattern of the groups of rows that serve it."""
UNPRUNED = {"dense": "16 bits", "int8": "8 bits in groups of 32", "found": "as found"}
"""Labels of the unpruned models, by their keys in a result."""
NEAR = 1.05
"""Ratio of perplexities below which a quicker method is shown beside the best."""


class Method(NamedTuple):
    """One method of a group: its rows with all seeds, and their means over seeds."""

    group: str
    name: str
    rows: tuple[RowResult, ...]

    @property
    def perplexity(self) -> float:
        """Perplexity of the pruned model."""
        return mean(row.perplexity["pruned"] for row in self.rows)

    @property
    def ratio(self) -> float:
        """Perplexity relative to the dense model of the same run."""
        return mean(row.perplexity["pruned"] / row.perplexity["dense"] for row in self.rows)

    def ratio_on(self, text: str) -> str:
        """The ratio on a further text, or a dash where it was not measured."""
        found = [row.texts[text]["pruned"] / row.texts[text]["dense"] for row in self.rows if text in row.texts]
        return f"{mean(found):.2f} x" if found else "-"

    @property
    def seconds(self) -> float:
        """Core seconds: wall time times threads."""
        return mean(row.seconds * row.threads for row in self.rows)

    @property
    def bytes(self) -> float:
        """Bytes of the pruned model."""
        return mean(row.bytes["pruned"] for row in self.rows)


def page(rows: Sequence[RowResult]) -> str:
    """The page in Markdown: the best method for each goal, all methods by group, and the Pareto frontier."""
    head = [
        "# Which method for which goal",
        "",
        "Generated from `docs/results/figures/pruning.json` by `make bench-pruning`; do not edit it by hand.",
    ]
    if not rows:
        return "\n".join([*head, "", "Nothing has been measured yet: run `make bench-pruning`.", ""])
    methods = _methods(rows)
    groups = list(dict.fromkeys(method.group for method in methods))
    lines = [
        *head,
        f"Perplexities compare only within this page: {_basis(rows)}.",
        "Seconds are core seconds on cores that other jobs may have shared: use them to rank methods only.",
        _unpruned(rows[0]),
    ]
    lines += ["", *_goals(methods, groups)]
    for group in groups:
        lines += ["", f"## {group}", "", *_table([method for method in methods if method.group == group])]
    return "\n".join([*lines, "", *_frontier(methods, rows[0]), ""])


def _basis(rows: Sequence[RowResult]) -> str:
    """The base and the texts of the page, in words."""
    bases = list(dict.fromkeys(row.base for row in rows if row.base))
    texts = [f"and, where measured, {', '.join(_texts(rows))}"] if _texts(rows) else []
    return " ".join([f"{', '.join(bases) or 'one model'}, one text", *texts])


def _texts(rows: Sequence[RowResult]) -> list[str]:
    """The names of the further texts that rows were measured on."""
    return list(dict.fromkeys(name for row in rows for name in row.texts))


def _unpruned(row: RowResult) -> str:
    """The reference of every row: the dense model at 16 and at 8 bits."""
    parts = [
        f"{name}: {row.perplexity[key]:.2f}, {row.bytes[key] / 1e6:.1f} MB"
        for key, name in UNPRUNED.items()
        if key in row.bytes
    ]
    return f"Unpruned, {'; '.join(parts)}."


def _methods(rows: Sequence[RowResult]) -> list[Method]:
    """The rows as methods: groups in the order of `rows`, methods by ascending perplexity."""
    keys = list(dict.fromkeys((row.group, row.name) for row in rows))
    methods = [Method(*key, tuple(row for row in rows if (row.group, row.name) == key)) for key in keys]
    order = {group: number for number, group in enumerate(dict.fromkeys(row.group for row in rows))}
    return sorted(methods, key=lambda method: (order[method.group], method.perplexity))


def _goals(methods: Sequence[Method], groups: Sequence[str]) -> list[str]:
    """For each goal and each of its groups: the method of lowest perplexity, and the quickest one within `NEAR`."""
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
    """The table of one group, by ascending perplexity, with the range over seeds."""
    texts = _texts([row for method in methods for row in method.rows])
    heads = "".join(f"{name}, of dense | " for name in texts)
    lines = [f"| method | perplexity | of dense | {heads}MB | seconds | seeds |", "|---" * (6 + len(texts)) + "|"]
    for method in methods:
        values = [row.perplexity["pruned"] for row in method.rows]
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        cells = [method.name, f"{method.perplexity:.2f}{spread}", f"{method.ratio:.2f} x"]
        cells += [method.ratio_on(name) for name in texts] + [_size(method)]
        lines.append(f"| {' | '.join([*cells, f'{method.seconds:.0f}', str(len(values))])} |")
    return lines


def _frontier(methods: Sequence[Method], row: RowResult) -> list[str]:
    """The Pareto frontier of bytes and perplexity over all methods and the unpruned models."""
    points = [(method.bytes, method.perplexity, f"{method.group}, {method.name}") for method in methods]
    known = {key: name for key, name in UNPRUNED.items() if key in row.bytes}
    points += [(row.bytes[key], row.perplexity[key], f"unpruned, {name}") for key, name in known.items()]
    best = [one for one in points if not any(_beats(other, one) for other in points)]
    names = [f"- {size / 1e6:.1f} MB: {name} ({perplexity:.2f})" for size, perplexity, name in sorted(best)]
    return ["## The Pareto frontier of bytes and perplexity", "", *names]


def _beats(one: tuple[float, float, str], other: tuple[float, float, str]) -> bool:
    """Whether `one` dominates `other`: no worse in bytes and perplexity, and better in one of them."""
    return one[:2] != other[:2] and one[0] <= other[0] and one[1] <= other[1]


def _size(method: Method) -> str:
    """Megabytes with one decimal."""
    return f"{method.bytes / 1e6:.1f}"


def main(arguments: Sequence[str]) -> int:
    """Write the page; returns 2 for wrong arguments or an unreadable file of rows."""
    if len(arguments) != 2:
        print("usage: python -m pruning.benchmark.which_method ROWS.json PAGE.md", file=sys.stderr)
        return 2
    try:
        write_atomically(Path(arguments[1]), page(list(read(Path(arguments[0])).values())).encode())
    except DataError as error:
        print(f"secateur: {error.message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
