"""A figure measured in several rounds."""

import statistics
from typing import NamedTuple


class Figure(NamedTuple):
    """Its value in each round."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.runs)

    def shown(self, form: str = ".0f") -> str:
        """Median (lowest to highest)."""
        return f"{self.median:{form}} ({min(self.runs):{form}} to {max(self.runs):{form}})"
