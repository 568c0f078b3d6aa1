"""Runs work that no metered reply bounds in few threads, off the event loop, and refuses it when too much waits."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from server.errors import Overloaded

RETRY_SECONDS = 2
Result = TypeVar("Result")


class Worker:
    """At most `threads` calls at once, in threads; at most `waiting` more wait. Belongs to the asyncio loop."""

    def __init__(self, what: str, *, threads: int = 1, waiting: int = 32) -> None:
        self._what = what
        self._limiter = CapacityLimiter(threads)
        self._free = threads + waiting

    async def run(self, function: Callable[..., Result], *arguments: object, **named: object) -> Result:
        """The function's result; raises Overloaded when too many calls wait, and what the function raises."""
        async with self.turn():
            return await to_thread.run_sync(partial(function, *arguments, **named))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, for work that uses threads itself; raises Overloaded when too many calls wait."""
        if not self._free:
            raise Overloaded(f"Too many requests for {self._what} wait; try again.", retry_after=RETRY_SECONDS)
        self._free -= 1
        try:
            async with self._limiter:
                yield
        finally:
            self._free += 1
