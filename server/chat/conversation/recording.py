"""A widget reply as numbered events, generated whether or not anybody reads it; MOST_READERS can follow at once.

Event 0 is `start`, then one `text` for each piece, `citations` if there are any, and `end` or `error`.
"""

import asyncio
import logging
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import anyio
from msgspec import Struct

from server.chat.reply import Reply
from server.errors import RateLimited, SecateurError
from server.knowledge.grounding.citations import Citation as Supported
from server.knowledge.passages import is_link
from server.skills.skill import Source

STOPPED, TIMEOUT, ERROR = "stopped", "timeout", "error"
MOST_READERS = 8  # of one reply: a visitor's tabs, and connections that broke unnoticed
RETRY_SECONDS = 5
logger = logging.getLogger(__name__)
BUG = SecateurError("The server made a mistake; its log has the details under this reply's id.")


class Event(NamedTuple):
    """One event; `id` counts from 0 without gaps."""

    id: int
    name: str
    data: Any


class Citation(Struct, frozen=True, omit_defaults=True):
    """A reference shown below the reply; `url` is http or https."""

    title: str
    url: str
    passage: str = ""
    """The text that supports the reply; empty for one of the skill's own references."""


class Recording:
    """Generates `reply` in a task of its own, from `start` on. Belongs to one asyncio loop."""

    def __init__(self, id: str, conversation: str, reply: Reply, sources: Sequence[Source]) -> None:
        self.id = id
        self.text = ""
        self.finish: str | None = None
        """Why it ended, or None while it is generated."""
        self.citations: tuple[Citation, ...] = ()
        self._conversation = conversation
        self._reply = reply
        self._sources = sources
        self._cited: tuple[Supported, ...] = ()
        self._ends = array("I")  # end of each piece in `text`; a list of strings takes ten times the memory
        self._last: tuple[tuple[str, Any], ...] = ()
        self._grown = asyncio.Event()
        self._readers: WeakSet[AsyncGenerator[Event]] = WeakSet()  # a response that ends drops its reader
        self._scope = anyio.CancelScope()
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    @property
    def next(self) -> int:
        """The id of the next event."""
        return 1 + len(self._ends) + len(self._last)

    def start(self, seconds: float, ended: Callable[[], None]) -> None:
        """Generate for at most `seconds`; `ended` is called once, after the last event."""
        self._task = asyncio.create_task(self._record(seconds))
        self._task.add_done_callback(lambda _: ended())

    async def stop(self) -> None:
        """End the reply with the text so far and wait for its last event; does nothing after it."""
        self._stopped = True
        self._scope.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    def follow(self, first: int) -> AsyncIterator[Event]:
        """The events from id `first` to the last, as they come; raises RateLimited beyond MOST_READERS."""
        if len(self._readers) >= MOST_READERS:
            raise RateLimited(
                f"This reply has {MOST_READERS} readers already; close one of them.",
                retry_after=RETRY_SECONDS,
                reason="concurrency",
            )
        reader = self._follow(first)
        self._readers.add(reader)
        return reader

    async def _follow(self, first: int) -> AsyncGenerator[Event]:
        while True:
            grown, ready, ended = self._grown, self.next, self.finish is not None
            for id in range(first, ready):
                yield self._event(id)
            first = max(first, ready)
            if ended:
                return
            await grown.wait()

    def _event(self, id: int) -> Event:
        if id == 0:
            return Event(0, "start", {"reply": self.id, "conversation": self._conversation})
        if id <= len(self._ends):
            begin = self._ends[id - 2] if id > 1 else 0
            return Event(id, "text", {"text": self.text[begin : self._ends[id - 1]]})
        return Event(id, *self._last[id - 1 - len(self._ends)])

    async def _record(self, seconds: float) -> None:
        try:
            await self._write(seconds)
        except SecateurError as error:
            self._fail(error)
        except Exception as error:
            # Without its text, which may contain a visitor's words.
            logger.error("%s: %s", self.id, type(error).__name__)
            self._fail(BUG)

    async def _write(self, seconds: float) -> None:
        """Record every piece and how the reply ended; raises what the reply raises."""
        try:
            with self._scope:
                self._scope.deadline = anyio.current_time() + seconds
                async for piece in self._reply.pieces():
                    self._cited = self._cited or piece.citations
                    if piece.text:
                        self._add(piece.text)
        finally:
            await self._reply.close("client_gone")
        if self._scope.cancelled_caught:
            self._finish(STOPPED if self._stopped else TIMEOUT)
        else:
            self._finish(self._reply.ended_by_server or self._reply.finish or ERROR)

    def _add(self, piece: str) -> None:
        self.text += piece
        self._ends.append(len(self.text))
        self._wake()

    def _finish(self, finish: str) -> None:
        found = [
            Citation(one.title, one.passage.url, one.passage.text) for one in self._cited if is_link(one.passage.url)
        ]
        own = [Citation(source.title, source.url) for source in self._sources if source.cited(self.text)]
        cited = (*found, *own)
        usage = self._reply.usage
        counts = {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.output,
            "total_tokens": usage.prompt + usage.output,
        }
        end = ("end", {"finish": finish, "usage": counts})
        self.citations = cited if self.text else ()
        self._close(finish, *([("citations", {"citations": cited})] if self.citations else []), end)

    def _fail(self, error: SecateurError) -> None:
        problem = {"message": error.message, "type": error.type, "param": None, "code": error.code}
        retry_after = getattr(error, "retry_after", None)
        self._close(ERROR, ("error", {"error": problem, "retry_after": retry_after}))

    def _close(self, finish: str, *last: tuple[str, Any]) -> None:
        self._last, self.finish = last, finish
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()
