"""The tokens of one request, as the asyncio loop reads them while the engine's thread makes them."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import NamedTuple, Self

from server.engine.sequence import Finish, Score, Sequence
from server.errors import EngineFailed


class Token(NamedTuple):
    """A sampled id; the last one of a reply says why it is the last (a stop id is sampled too, and counts)."""

    id: int
    finish: Finish | None
    score: Score | None = None
    """Where the sampling asks for it."""


class Stream(AsyncIterator[Token]):
    """Yields each token as it is sampled; raises EngineFailed if the engine fails; `aclose()` aborts."""

    def __init__(self, sequence: Sequence, abort: Callable[[Sequence], None]) -> None:
        self._sequence = sequence
        self._abort = abort
        self.loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[list[Token] | EngineFailed | None] = asyncio.Queue()
        self._ready: deque[Token] = deque()
        self._ended = False
        self._queued = time.monotonic()

    @property
    def waited(self) -> float | None:
        """Seconds until its first pass was planned; None while it waits."""
        begun = self._sequence.begun
        return None if begun is None else max(0.0, begun - self._queued)

    @property
    def cached(self) -> int:
        """How many prompt tokens were not computed again; valid from the first token on."""
        return self._sequence.cached

    @property
    def sampled(self) -> int:
        """How many ids the engine has sampled, whether they were read or not; after `aclose` it stays."""
        return self._sequence.generated

    @property
    def ready(self) -> int:
        """How many tokens were sampled in one step with the last one that was read, and are still to be read."""
        return len(self._ready)

    def put(self, item: list[Token] | EngineFailed | None) -> None:
        """The tokens of a step, the failure, or the end of all waiting; within the loop."""
        self._items.put_nowait(item)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        if self._ended:
            raise StopAsyncIteration
        if not self._ready:
            item = await self._items.get()
            if not isinstance(item, list):
                self._ended = True
                if item is None:
                    raise StopAsyncIteration
                raise item
            self._ready.extend(item)
        token = self._ready.popleft()
        if token.finish is not None:
            self._ended = True
        return token

    async def aclose(self) -> None:
        """Stop generating; the slot is free within one step. Closing twice, or after the end, does nothing."""
        self._abort(self._sequence)
        self._ended = True
        self.put(None)  # wakes a reader that waits in another task


def hand_over(items: Iterable[tuple[Stream, list[Token] | EngineFailed]]) -> None:
    """What one step made, to the streams that wait for it; for the engine's thread.

    Each loop is woken once: with every call it may take the interpreter's lock, for which this thread then waits.
    """
    loops = defaultdict(list)
    for stream, item in items:
        loops[stream.loop].append((stream, item))
    for loop, together in loops.items():
        with suppress(RuntimeError):  # the readers' loop is closed: nobody is left to tell
            loop.call_soon_threadsafe(_put, together)


def _put(items: Iterable[tuple[Stream, list[Token] | EngineFailed]]) -> None:
    for stream, item in items:
        stream.put(item)
