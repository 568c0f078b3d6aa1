"""Server-sent events, by sse-starlette: keep-alive comments, proxy headers, cancellation when the client leaves.

Its shutdown watcher never ends a stream here: it reacts to uvicorn's signal handlers, and `Listener` installs none.
`Replies.interrupt` ends streams at the drain's deadline instead, each with its last event.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from server.chat.conversation.transcript import Event
from server.chat.reply import Reply
from server.metering.ledger.records import LedgerUnavailable

KEEP_ALIVE_SECONDS = 15
logger = logging.getLogger(__name__)


class EventStream(EventSourceResponse):
    """Streams `events`, with a comment every KEEP_ALIVE_SECONDS so that proxies keep the connection."""

    def __init__(self, events: AsyncIterator[ServerSentEvent], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(events, headers=headers, ping=KEEP_ALIVE_SECONDS, ping_message_factory=keep_alive, sep="\n")


class ReplyStream(EventStream):
    """Streams the `events` of a reply, closes it however the stream ends, and calls `ended`."""

    def __init__(self, events: AsyncIterator[ServerSentEvent], reply: Reply, ended: Callable[[], None]) -> None:
        super().__init__(events, reply.headers)
        self._reply = reply
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the last event, or until the client leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:  # not in the iterator: it never starts if the client leaves before the first event
            await leave(self._reply)
            self._ended()


def event(data: str) -> ServerSentEvent:
    """An event with only data."""
    return ServerSentEvent(data, sep="\n")


async def numbered(events: AsyncIterator[Event]) -> AsyncIterator[ServerSentEvent]:
    """Each event with its id, name, and data as one line of JSON."""
    async for id, name, data in events:
        yield ServerSentEvent(msgspec.json.encode(data).decode(), event=name, id=str(id), sep="\n")


def keep_alive() -> ServerSentEvent:
    """A comment, which clients ignore."""
    return ServerSentEvent(comment="keep-alive", sep="\n")


async def leave(reply: Reply) -> None:
    """Close a reply whose client left; does nothing if it has ended."""
    try:
        await reply.close("client_gone")
    except LedgerUnavailable as error:
        logger.error("%s It will be tried again.", error)
