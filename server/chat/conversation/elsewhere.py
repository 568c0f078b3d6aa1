"""Follows replies that another replica generates, or one of an earlier process generated, by reading the store."""

import asyncio
import time
from collections.abc import AsyncGenerator
from weakref import WeakValueDictionary

from server.chat.conversation.recording import Readers
from server.chat.conversation.store import SILENT_SECONDS, Conversations
from server.chat.conversation.transcript import Event, Transcript
from server.errors import Overloaded

POLL_SECONDS = 0.5
RETRY_SECONDS = 5


class RepliesElsewhere:
    """Reads the replies of other processes; belongs to the asyncio loop."""

    def __init__(self, store: Conversations) -> None:
        self._store = store
        self._readers: WeakValueDictionary[str, Readers] = WeakValueDictionary()

    def follow(self, reply: Transcript, first: int) -> "AsyncGenerator[Event]":
        """The events from id `first` to the last, as the store gets them; raises RateLimited as `Readers.admit`."""
        readers = self._readers.setdefault(reply.id, Readers())
        generator = self._follow(reply, first, readers)
        readers.admit(generator)
        return generator

    async def stop(self, reply: Transcript) -> Transcript:
        """Ask the owner to end a reply, and wait for that; raises Overloaded if it does not."""
        await self._store.stop(reply.id)
        deadline = time.monotonic() + 2 * SILENT_SECONDS
        while reply.finish is None:
            if time.monotonic() > deadline:
                raise Overloaded("The reply could not be stopped; try again.", retry_after=RETRY_SECONDS)
            await asyncio.sleep(POLL_SECONDS)
            reply = await self._again(reply) or reply
        return reply

    async def _follow(self, reply: Transcript, first: int, readers: Readers) -> AsyncGenerator[Event]:
        """`readers` lives as long as one of them."""
        found: Transcript | None = reply
        while found is not None:
            for event in found.events(first):
                first = event.id + 1
                yield event
            if found.finish is not None:
                return
            await asyncio.sleep(POLL_SECONDS)
            found = await self._again(found)

    async def _again(self, reply: Transcript) -> Transcript | None:
        """The reply as it is now; None after a reset."""
        conversation = await self._store.find(reply.conversation)
        turn = conversation.find(reply.id) if conversation else None
        return turn.reply if turn else None
