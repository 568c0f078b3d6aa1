"""The table that `make bench-serving` prints."""

from collections.abc import Sequence
from typing import NamedTuple

from tests.benchmarks.peers.figure import Figure


class Line(NamedTuple):
    """Two figures, their ratio by round, and the bound on its median."""

    name: str
    first: Sequence[float]
    second: Sequence[float]
    ratio: Figure
    asked: float
    most: bool = False
    """Whether the bound is an upper one."""
    form: str = ".0f"

    @property
    def met(self) -> bool:
        """Whether the median ratio is within the bound."""
        return self.ratio.median <= self.asked if self.most else self.ratio.median >= self.asked

    def __str__(self) -> str:
        figures = " | ".join(Figure(tuple(runs)).shown(self.form) for runs in (self.first, self.second))
        bound = f"{'<=' if self.most else '>='} {self.asked:g}"
        return f"| {self.name} | {figures} | {self.ratio.shown('.3f')} | {bound}: {'yes' if self.met else 'no'} |"


def table(lines: Sequence[Line], note: str) -> str:
    """Markdown: median (lowest to highest) of the rounds."""
    head = ["| | first | second | ratio | asked |", "|---|---|---|---|---|"]
    return "\n".join([*head, *map(str, lines), "", note])
