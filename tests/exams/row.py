"""One line of an exam's table."""

from collections.abc import Iterable
from typing import NamedTuple


class Row(NamedTuple):
    """A finding, its bound, and whether it is within."""

    name: str
    figure: str
    bound: str
    held: bool


def show(rows: Iterable[Row]) -> int:
    """Print a line for each row as it is found; returns 1 if one is beyond its bound."""
    broken = 0
    for row in rows:
        broken += not row.held
        print(f"{'yes' if row.held else 'NO':<4}{row.name:<47} {row.figure} (must: {row.bound})", flush=True)
    return int(broken > 0)
