"""Limits of one rendering of a template: loop steps, CPU seconds of its thread, and characters produced."""

import time
from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import SecurityError

MAX_STEPS = 300_000  # over all loops of one rendering
MAX_SECONDS = 2.0  # of CPU: a thread that waits for a busy core is no hostile template
MAX_EXTRA = 100_000  # characters a template may add to what it was given
MAX_COPIES = 16  # how often a template may copy all its characters, as macros, blocks and filters do
BUDGET = "\0budget"  # a variable name that no template can spell


class Budget:
    """What is left for one rendering whose input has `given` characters.

    Every method raises SecurityError once a limit is exceeded.
    """

    def __init__(self, given: int = 0) -> None:
        self.characters = MAX_EXTRA + 2 * given
        self._copies = MAX_COPIES * self.characters
        self._steps = MAX_STEPS
        self._deadline = time.thread_time() + MAX_SECONDS

    def charge_steps(self, count: int = 1) -> None:
        """Charge `count` loop steps."""
        self._steps -= count
        if self._steps < 0:
            raise SecurityError("its loops are too long")
        self.check_time()

    def check_time(self) -> None:
        """Check that there is CPU time left; the thread must be the one that made this budget."""
        if time.thread_time() > self._deadline:
            raise SecurityError("it takes too long")

    def range(self, *limits: int) -> "range":
        """The template's `range`, charged in full; OverflowError for one too long for len()."""
        steps = range(*limits)
        self.charge_steps(1 + len(steps))
        return steps

    def check_size(self, size: int) -> None:
        """Check that a text or list of `size` is not too long."""
        if size > self.characters:
            raise SecurityError("it writes far more than it was given")

    def charge_characters(self, size: int) -> None:
        """Charge `size` new characters, copies included."""
        self.check_size(size)
        self._copies -= size
        if self._copies < 0:
            raise SecurityError("it writes far more than it was given")

    def charged(self, value: Any) -> Any:
        """`value`, charged; nested lists count at the size they have when written out."""
        self.check_time()
        if isinstance(value, str):
            self.charge_characters(len(value))
        elif isinstance(value, list | tuple | dict):
            self.charge_characters(len(value))
            self._check_nested(value)
        return value

    def _check_nested(self, value: Any) -> None:
        """Check that nested lists are not too long once written, compared or hashed; shared ones count every time."""
        pending, items, characters = [value], 0, 0
        while pending:
            inner = pending.pop()
            if isinstance(inner, str):
                characters += len(inner)
            elif isinstance(inner, list | tuple | dict):
                items += len(inner)
                pending += inner
                if isinstance(inner, dict):
                    pending += inner.values()
                self.check_size(items)
                self.check_time()
        self.check_size(characters)


def budget_of(context: Any) -> Budget:
    """The budget of the rendering of `context`; SecurityError where there is none."""
    found = context.parent.get(BUDGET)
    if not isinstance(found, Budget):
        raise SecurityError("there is no budget for loops")
    return found


def with_budget(values: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """The variables `values` of a template, and the budget of its rendering."""
    return {**values, BUDGET: budget}
