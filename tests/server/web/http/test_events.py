"""Server-sent events as bytes on the wire, and replies whose client leaves before the first event."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import anyio
from sse_starlette.event import ServerSentEvent
from starlette.types import ASGIApp, Message

from server.chat.conversation.transcript import Event
from server.chat.reply import Reply
from server.web.http.events import EventStream, ReplyStream, event, numbered

SCOPE = {"type": "http", "method": "GET"}


async def recorded() -> AsyncIterator[Event]:
    yield Event(0, "start", {"reply": "rep_1"})
    yield Event(1, "text", {"text": "a\nb"})


async def plain() -> AsyncIterator[ServerSentEvent]:
    yield event('{"a":1}')
    yield event("[DONE]")


def sent(app: ASGIApp, *, leaves: bool = False) -> list[Message]:
    """The ASGI messages of `app`, for a client that reads to the end or has left already."""
    messages: list[Message] = []

    async def receive() -> Message:
        if not leaves:
            await anyio.sleep_forever()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(cast(Any, app(SCOPE, receive, send)))
    return messages


def body(messages: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in messages)


def test_events_are_data_lines_and_headers_forbid_buffering() -> None:
    start, *rest = sent(EventStream(plain(), {"X-RateLimit-Limit-Requests": "5"}))
    assert body(rest) == b'data: {"a":1}\n\ndata: [DONE]\n\n'
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"x-ratelimit-limit-requests"] == b"5"


def test_numbered_events_have_id_name_and_one_line_of_json() -> None:
    wire = body(sent(EventStream(numbered(recorded()))))
    assert wire == (b'id: 0\nevent: start\ndata: {"reply":"rep_1"}\n\nid: 1\nevent: text\ndata: {"text":"a\\nb"}\n\n')


class FakeReply:
    """Records how it is closed."""

    headers: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, closed: Callable[[str], None]) -> None:
        self._closed = closed

    async def close(self, outcome: str) -> None:
        self._closed(outcome)


def test_a_reply_is_closed_even_if_its_client_left_before_the_first_event() -> None:
    calls: list[str] = []

    async def events() -> AsyncIterator[ServerSentEvent]:
        await anyio.sleep_forever()
        yield event("never")

    reply = cast(Reply, FakeReply(calls.append))
    assert body(sent(ReplyStream(events(), reply, lambda: calls.append("ended")), leaves=True)) == b""
    assert calls == ["client_gone", "ended"]
