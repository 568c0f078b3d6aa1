"""Shows the progress of a long computation on standard error: a bar on a terminal, else a line now and then."""

import sys
from time import monotonic
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_EVERY = 20.0
"""Seconds between lines when standard error is not a terminal."""


class Progress:
    """A context manager around `total` equal units of work, `done` of them already finished by an earlier run."""

    def __init__(self, what: str, total: int, done: int = 0, *, shown: bool = True) -> None:
        self._what, self._shown = what, shown
        self._terminal = sys.stderr.isatty()
        form = "{desc} {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left"
        self._bar = tqdm(total=total, initial=done, desc=what, disable=not (self._terminal and shown), bar_format=form)
        self._total, self._initial, self._done = total, done, done
        self._start = self._last = monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self) -> None:
        """Count one finished unit."""
        self._done += 1
        self._bar.update()
        now = monotonic()
        if self._shown and not self._terminal and now - self._last > LINE_EVERY:
            self._last = now
            left = (now - self._start) / (self._done - self._initial) * (self._total - self._done)
            print(f"{self._what}: {self._done / self._total:.0%}, about {left:.0f} s left", file=sys.stderr, flush=True)
