"""POST /v1/chat/completions, streamed or whole: translates between HTTP and `IdempotentReplies`."""

import hashlib
import time
from collections.abc import AsyncIterator

import anyio
from anyio import to_thread
from sse_starlette.event import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from server.chat.idempotency import KeptReply, idempotency_digest
from server.chat.idempotent_replies import IdempotentReplies, Origin, Started, joined
from server.chat.reply import Reply
from server.chat.reply_text import Piece
from server.chat.request import ReplyRequest
from server.errors import SecateurError
from server.skills.catalogue import Skills
from server.web.api.openai.chat.format import CompletionFormat, complete, encode, ending, opening, text_chunk
from server.web.api.openai.chat.schema import ChatRequest, parse
from server.web.http import problems
from server.web.http.events import EventStream, ReplyStream, event, leave
from server.web.http.requests import RequestState, bearer, read_body

LONG_BODY = 1 << 16  # bytes; longer bodies are parsed in a thread, so that other streams go on
DONE = "[DONE]"


class ChatEndpoint:
    """The endpoint for these skills; `max_body` is in bytes."""

    def __init__(self, skills: Skills, replies: IdempotentReplies, *, max_body: int) -> None:
        self._skills = skills
        self._replies = replies
        self._max_body = max_body

    async def complete(self, request: Request) -> Response:
        """One reply, as a stream of chunks or whole; the kept one for a repeated Idempotency-Key."""
        caller = self._skills.recognise(bearer(request.headers))  # before the body is read
        body = await read_body(request, self._max_body)
        wanted = await to_thread.run_sync(parse, body) if len(body) > LONG_BODY else parse(body)
        state = RequestState.of(request.scope)
        state.name_skill(self._skills.get(wanted.model))
        grant = self._skills.authorise(wanted.model, caller)
        state.key = grant.key_id
        key = idempotency_digest(request.headers.get("idempotency-key"), grant.skill.name, grant.key_id)
        messages = tuple(message.plain() for message in wanted.messages)
        asked = ReplyRequest(
            grant.skill,
            messages,
            wanted.sampling,
            wanted.stops,
            grant.key_id,
            cache_labels=wanted.cache_labels,
            idempotency=key,
        )
        origin = Origin(hashlib.sha256(body).hexdigest(), state.request_id, int(time.time()))
        answer = await self._replies.begin(origin, asked)
        if isinstance(answer, KeptReply):
            return repeated(answer, wanted)
        form = CompletionFormat(wanted, origin.request_id, origin.created)
        if wanted.stream:
            return ReplyStream(chunks(answer, form), answer.reply, lambda: note_usage(state, answer.reply))
        response = await whole(request, answer, form)
        note_usage(state, answer.reply)
        return response


def repeated(kept: KeptReply, wanted: ChatRequest) -> Response:
    """Send a kept reply again, streamed or whole as this request asks."""
    form = CompletionFormat(wanted, kept.request_id, kept.created)
    headers = {"Idempotent-Replayed": "true"}
    if not wanted.stream:
        return Response(complete(kept.text, kept.logprobs, kept, form), headers=headers, media_type="application/json")

    async def events() -> AsyncIterator[ServerSentEvent]:
        for data in (opening(form), text_chunk(form, kept.text, kept.logprobs), *ending(kept, form), DONE):
            yield event(data)

    return EventStream(events(), headers)


async def chunks(started: Started, form: CompletionFormat) -> AsyncIterator[ServerSentEvent]:
    """The events of a stream: role, text, finish reason, usage if wanted, [DONE]; an error ends it instead."""
    yield event(opening(form))
    try:
        async for piece in started.pieces:
            yield event(text_chunk(form, *piece))
    except SecateurError as error:
        yield event(encode(problems.body(error)))
        return
    except Exception:
        yield event(encode(problems.body(problems.BUG)))
        raise
    for data in (*ending(started.reply, form), DONE):
        yield event(data)


async def whole(request: Request, started: Started, form: CompletionFormat) -> Response:
    """The whole reply as one JSON object; closes it early if the client disconnects."""
    reply = started.reply
    received: list[Piece] = []
    failure: SecateurError | None = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(cancel_on_disconnect, request, group.cancel_scope)
            try:
                async for piece in started.pieces:
                    received.append(piece)
            except SecateurError as error:  # raised below: the task group would wrap it
                failure = error
            group.cancel_scope.cancel()
    finally:
        await leave(reply)
    if failure is not None:
        raise failure
    return Response(
        complete(*joined(received), reply, form), headers=dict(reply.headers), media_type="application/json"
    )


async def cancel_on_disconnect(request: Request, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def note_usage(state: RequestState, reply: Reply) -> None:
    """Record the reply's tokens and finish reason for the access log."""
    state.input_tokens, state.output_tokens = reply.usage.prompt, reply.usage.output
    state.finish = reply.finish or "none"
