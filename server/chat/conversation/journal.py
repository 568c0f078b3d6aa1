"""Writes live replies to the store as they grow, so that other replicas show them and a restart keeps them.

A crash loses the text of at most FLUSH_SECONDS; the ledger has every token of it.
"""

import asyncio
import logging
import time
from typing import NamedTuple

import anyio

from server.chat.conversation.recording import Recording
from server.chat.conversation.store import Conversations
from server.chat.conversation.transcript import Transcript
from server.errors import SecateurError

FLUSH_SECONDS = 0.5
ALIVE_SECONDS = 3.0
"""Between signs of life of a reply that does not grow."""
TIDY_SECONDS = 60.0
CLOSE_SECONDS = 5.0
logger = logging.getLogger(__name__)


class _Grown(NamedTuple):
    transcript: Transcript
    next: int
    ended: bool


class Journal:
    """The live replies of this process; belongs to the asyncio loop."""

    def __init__(self, store: Conversations) -> None:
        self._store = store
        self._live: dict[str, Recording] = {}
        self._beginning: set[str] = set()
        self._written: dict[str, tuple[int, float]] = {}
        """Of each live reply: the next event when it was last written, and when that was."""

    def find(self, reply: str) -> Recording | None:
        """The live reply with this id, if this process generates it."""
        return self._live.get(reply)

    def of(self, conversation: str) -> list[Recording]:
        """The live replies of a conversation, also of one that was reset."""
        return [one for one in self._live.values() if one.transcript.conversation == conversation]

    def expect(self, reply: str) -> None:
        """Show that a reply is about to begin, until `record` or `drop`."""
        self._beginning.add(reply)

    def drop(self, reply: str) -> None:
        """The reply did not begin; does nothing if it did."""
        self._beginning.discard(reply)

    def record(self, recording: Recording, seconds: float) -> None:
        """Start a recording of at most `seconds` and write it until it has ended."""
        self._live[recording.transcript.id] = recording
        self._beginning.discard(recording.transcript.id)
        recording.start(seconds, self._end)

    async def run(self) -> None:
        """Write what has grown, and tidy the store; never returns."""
        tidied = time.monotonic()
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self._flush()
                if time.monotonic() - tidied > TIDY_SECONDS:
                    tidied = time.monotonic()
                    await self._store.tidy()
            except SecateurError as error:
                logger.error("Live replies are not kept: %s", error)

    async def close(self) -> None:
        """Wait until the live replies, which a drain has ended, are written; at most CLOSE_SECONDS."""
        with anyio.move_on_after(CLOSE_SECONDS):
            for recording in list(self._live.values()):
                await recording.wait()

    async def _flush(self) -> None:
        """Write what has grown, show signs of life, and stop what was stopped, reset or erased elsewhere."""
        now, grown = time.monotonic(), self._grown()
        alive = [*self._beginning, *(id for id in self._live.keys() - grown.keys() if self._silent(id, now))]
        if not grown and not alive:
            return
        stopped = await self._store.write([one.transcript for one in grown.values()], alive)
        for id, one in grown.items():
            if one.ended:
                self._forget(id)
        seen = {id: one.next for id, one in grown.items()} | {
            id: self._written[id][0] for id in alive if id in self._written
        }
        self._written |= {id: (following, now) for id, following in seen.items() if id in self._live}
        for id in stopped & self._live.keys():
            self._live[id].stop_soon()

    def _grown(self) -> dict[str, "_Grown"]:
        """The live replies with events that the store does not have, by id."""
        live = ((id, one.transcript) for id, one in self._live.items())
        return {
            id: _Grown(one, one.next, one.finish is not None)
            for id, one in live
            if id not in self._written or self._written[id][0] != one.next
        }

    def _silent(self, id: str, now: float) -> bool:
        return now - self._written[id][1] > ALIVE_SECONDS

    async def _end(self, recording: Recording) -> None:
        """Write a reply that has ended; if that fails, the next flush tries again."""
        transcript = recording.transcript
        try:
            await self._store.write([transcript])
        except SecateurError as error:
            logger.error("A reply is not kept yet: %s", error)
            return
        self._forget(transcript.id)

    def _forget(self, id: str) -> None:
        self._live.pop(id, None)
        self._written.pop(id, None)
