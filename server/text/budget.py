"""What one rendering of a template may spend: turns, seconds, and characters that it makes."""

import time
from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import SecurityError

MAX_STEPS = 300_000  # over all loops of one rendering
MAX_SECONDS = 2.0
MAX_EXTRA = 100_000  # characters a template may add to what it was given
MAX_COPIES = 16  # how often a template may make all those characters anew: for macros, blocks and filters
BUDGET = "\0budget"  # no template can write this name


class Budget:
    """What one rendering may still spend; `characters` is the longest text that it may make."""

    def __init__(self, given: int = 0) -> None:
        self.characters = MAX_EXTRA + 2 * given
        self._copies = MAX_COPIES * self.characters
        self._steps = MAX_STEPS
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self, count: int = 1) -> None:
        """Pay for so many turns of a loop; SecurityError when the budget or the time is spent."""
        self._steps -= count
        if self._steps < 0:
            raise SecurityError("its loops are too long")
        self.wait()

    def wait(self) -> None:
        """SecurityError when the time is spent."""
        if time.monotonic() > self._deadline:
            raise SecurityError("it takes too long")

    def range(self, *limits: int) -> "range":
        """The template's `range`; one too long for len() raises OverflowError, which ends the rendering as well."""
        steps = range(*limits)
        self.step(1 + len(steps))
        return steps

    def fits(self, size: int) -> None:
        """SecurityError for a text or list of more than may be made."""
        if size > self.characters:
            raise SecurityError("it writes far more than it was given")

    def makes(self, size: int) -> None:
        """Pay for so many new characters, which may be copies of others."""
        self.fits(size)
        self._copies -= size
        if self._copies < 0:
            raise SecurityError("it writes far more than it was given")

    def made(self, value: Any) -> Any:
        """`value`, once it is paid for, and what it holds is measured as if each list within stood there in full."""
        self.wait()
        if isinstance(value, str):
            self.makes(len(value))
        elif isinstance(value, list | tuple | dict):
            self.makes(len(value))
            self._measure(value)
        return value

    def _measure(self, value: Any) -> None:
        """SecurityError for a list of lists that would be too long once it is written, compared or hashed."""
        open_, items, characters = [value], 0, 0
        while open_:
            inner = open_.pop()
            if isinstance(inner, str):
                characters += len(inner)
            elif isinstance(inner, list | tuple | dict):
                items += len(inner)
                open_ += inner
                if isinstance(inner, dict):
                    open_ += inner.values()
                self.fits(items)
                self.wait()
        self.fits(characters)


def budget_of(context: Any) -> Budget:
    """The budget of the rendering that `context` belongs to; SecurityError without one."""
    found = context.parent.get(BUDGET)
    if not isinstance(found, Budget):
        raise SecurityError("there is no budget for loops")
    return found


def variables(budget: Budget, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a template is rendered with."""
    return {**values, BUDGET: budget}
