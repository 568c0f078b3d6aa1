"""A figure of several rounds."""

import statistics
from typing import NamedTuple


class Figure(NamedTuple):
    """One figure of each round."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.runs)

    def shown(self, form: str = ".0f") -> str:
        """Median (lowest to highest)."""
        return f"{self.median:{form}} ({min(self.runs):{form}} to {max(self.runs):{form}})"
