"""Generates a widget reply whether or not anybody reads it; MOST_READERS can follow it at once."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from weakref import WeakSet

import anyio

from server.chat.conversation.transcript import ERROR, Citation, Event, Transcript
from server.chat.reply import Reply
from server.errors import RateLimited, SecateurError
from server.knowledge.grounding.citations import Citation as Supported
from server.knowledge.passages import is_link
from server.skills.skill import Source

STOPPED, TIMEOUT = "stopped", "timeout"
MOST_READERS = 8  # of one reply: a visitor's tabs, and connections that broke unnoticed
RETRY_SECONDS = 5
logger = logging.getLogger(__name__)
BUG = SecateurError("The server made a mistake; its log has the details under this reply's id.")


class Readers:
    """The readers of one reply."""

    def __init__(self) -> None:
        self._readers: WeakSet[AsyncGenerator[Event]] = WeakSet()  # a response that ends drops its reader

    def admit(self, reader: AsyncGenerator[Event]) -> AsyncIterator[Event]:
        """The reader itself; raises RateLimited beyond MOST_READERS."""
        if len(self._readers) >= MOST_READERS:
            raise RateLimited(
                f"This reply has {MOST_READERS} readers already; close one of them.",
                retry_after=RETRY_SECONDS,
                reason="concurrency",
            )
        self._readers.add(reader)
        return reader


class Recording:
    """Generates `reply` into `transcript` in a task of its own, from `start` on. Belongs to one asyncio loop."""

    def __init__(self, transcript: Transcript, reply: Reply, sources: Sequence[Source]) -> None:
        self.transcript = transcript
        self._reply = reply
        self._sources = sources
        self._cited: tuple[Supported, ...] = ()
        self._grown = asyncio.Event()
        self._readers = Readers()
        self._scope = anyio.CancelScope()
        self._stopped = False
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    def start(self, seconds: float, keep: Callable[["Recording"], Awaitable[None]]) -> None:
        """Generate for at most `seconds`; `keep` is awaited once, before readers learn that the reply has ended."""
        self._task = asyncio.create_task(self._record(seconds, keep))

    def stop_soon(self) -> None:
        """End the reply with the text so far; does nothing once it has ended."""
        self._stopped = True
        self._scope.cancel()

    async def stop(self) -> None:
        """`stop_soon`, and wait for the last event."""
        self.stop_soon()
        await self.wait()

    async def wait(self) -> None:
        """Wait for the last event."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def follow(self, first: int) -> AsyncIterator[Event]:
        """The events from id `first` to the last, as they come; raises RateLimited beyond MOST_READERS."""
        return self._readers.admit(self._follow(first))

    async def _follow(self, first: int) -> AsyncGenerator[Event]:
        while True:
            grown, ended = self._grown, self._ended
            for event in list(self.transcript.events(first)) if ended or self.transcript.finish is None else ():
                first = event.id + 1
                yield event
            if ended:
                return
            await grown.wait()

    async def _record(self, seconds: float, keep: Callable[["Recording"], Awaitable[None]]) -> None:
        try:
            await self._write(seconds)
        except SecateurError as error:
            self.transcript.fail(error)
        except Exception as error:
            # Without its text, which may contain a visitor's words.
            logger.error("%s: %s", self.transcript.id, type(error).__name__)
            self.transcript.fail(BUG)
        await keep(self)
        self._ended = True
        self._wake()

    async def _write(self, seconds: float) -> None:
        """Record every piece and how the reply ended; raises what the reply raises."""
        try:
            with self._scope:
                self._scope.deadline = anyio.current_time() + seconds
                async for piece in self._reply.pieces():
                    self._cited = self._cited or piece.citations
                    if piece.text:
                        self.transcript.add(piece.text)
                        self._wake()
        finally:
            await self._reply.close("client_gone")
        if self._scope.cancelled_caught:
            self._finish(STOPPED if self._stopped else TIMEOUT)
        else:
            self._finish(self._reply.ended_by_server or self._reply.finish or ERROR)

    def _finish(self, finish: str) -> None:
        found = [
            Citation(one.title, one.passage.url, one.passage.text) for one in self._cited if is_link(one.passage.url)
        ]
        own = [Citation(source.title, source.url) for source in self._sources if source.cited(self.transcript.text)]
        usage = self._reply.usage
        counts = {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.output,
            "total_tokens": usage.prompt + usage.output,
        }
        self.transcript.end(finish, counts, (*found, *own))

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()
