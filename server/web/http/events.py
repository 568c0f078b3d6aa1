"""Server-sent events by sse-starlette, with what its defaults get wrong for metered replies put right.

1. Its shutdown watcher cuts live streams at SIGTERM; our listeners keep the signals to themselves, so it never fires.
2. A client that leaves before the first event never starts the generator, whose `finally` then never runs: the reply
   is closed here, in any case.
3. It logs every chunk at DEBUG: `server.web.logs` keeps it at WARNING.
"""

import logging
from collections.abc import AsyncIterator, Callable

import msgspec
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from server.chat.conversation.recording import Event
from server.chat.reply import Reply
from server.metering.ledger.records import LedgerUnavailable

KEEP_ALIVE_SECONDS = 15
logger = logging.getLogger(__name__)


class ReplyStream(EventSourceResponse):
    """Sends `events` as they are made by `event`; whatever happens, `reply` is closed, then `ended` called."""

    def __init__(self, events: AsyncIterator[bytes], reply: Reply, ended: Callable[[], None]) -> None:
        super().__init__(
            events, headers=reply.headers, ping=KEEP_ALIVE_SECONDS, ping_message_factory=keep_alive, sep="\n"
        )
        self._reply = reply
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end or until the client leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await leave(self._reply)
            self._ended()


class RecordingStream(EventSourceResponse):
    """Sends numbered events; whoever leaves only leaves, and the reply goes on."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        super().__init__(numbered(events), ping=KEEP_ALIVE_SECONDS, ping_message_factory=keep_alive, sep="\n")


async def numbered(events: AsyncIterator[Event]) -> AsyncIterator[ServerSentEvent]:
    """Each event with its id, name, and data as one line of JSON."""
    async for id, name, data in events:
        yield ServerSentEvent(msgspec.json.encode(data).decode(), event=name, id=str(id), sep="\n")


def event(data: str) -> bytes:
    """One line of JSON as a `data:` event, in bytes: sse-starlette's own encoder costs more than the JSON does."""
    return f"data: {data}\n\n".encode()


async def leave(reply: Reply) -> None:
    """Close a reply that nobody reads any more; nothing happens if it ended before."""
    try:
        await reply.close("client_gone")
    except LedgerUnavailable as error:
        logger.error("%s It will be tried again.", error)


def keep_alive() -> ServerSentEvent:
    """A comment, which clients skip and proxies see as life."""
    return ServerSentEvent(comment="keep-alive", sep="\n")
