"""Shows the progress of a long computation on standard error: a bar on a terminal, else a line now and then."""

import sys
from collections.abc import Collection, Iterator
from time import monotonic
from types import TracebackType
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

FIRST_LINE = 3.0
"""Seconds until the first line when standard error is not a terminal; then twice as long each time."""
LINE_EVERY = 20.0
"""Seconds between two lines, at most."""
Item = TypeVar("Item")


def counted(what: str, items: Collection[Item], stream: TextIO | None = None) -> Iterator[Item]:
    """Each of `items`, with the progress through them shown on `stream`, by default standard error."""
    with Progress(what, len(items), stream=stream) as progress:
        for item in items:
            yield item
            progress.step()


class Progress:
    """A context manager around `total` equal units of work, `done` of them already finished by an earlier run."""

    def __init__(
        self, what: str, total: int, done: int = 0, *, shown: bool = True, stream: TextIO | None = None
    ) -> None:
        self._what, self._shown = what, shown
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        form = "{desc} {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left"
        hidden = not (self._terminal and shown)
        self._bar = tqdm(total=total, initial=done, desc=what, disable=hidden, bar_format=form, file=self._stream)
        self._total, self._initial, self._done = total, done, done
        self._start = self._last = monotonic()
        self._every = min(FIRST_LINE, LINE_EVERY)

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
        if self._shown and not self._terminal and now - self._last > self._every:
            self._last, self._every = now, min(2 * self._every, LINE_EVERY)
            left = (now - self._start) / (self._done - self._initial) * (self._total - self._done)
            text = f"{self._what}: {self._done / self._total:.0%}, about {left:.0f} s left"
            print(text, file=self._stream, flush=True)
