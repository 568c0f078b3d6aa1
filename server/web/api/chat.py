"""POST /v1/chat/completions, streamed and whole; translates and decides nothing else."""

import hashlib
import time
from collections.abc import AsyncIterator, Sequence

import anyio
from anyio import to_thread
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from server.chat.idempotency import KeptReplies, KeptReply, idempotency_digest, not_kept
from server.chat.reply import Replies, Reply
from server.chat.reply_text import Piece
from server.chat.request import ReplyRequest
from server.errors import SecateurError
from server.metering.meter import Answered
from server.skills.catalogue import Skills
from server.web.api.completion import Form, complete, encode, ending, opening, text_chunk
from server.web.api.schema import parse
from server.web.http import problems
from server.web.http.events import ReplyStream, event, leave
from server.web.http.requests import bearer, note, read_body, request_id

LONG_BODY = 1 << 16  # bytes; longer ones are parsed in a thread, so that other streams go on


class Chat:
    """The endpoint, for these skills."""

    def __init__(self, skills: Skills, replies: Replies, *, max_body: int) -> None:
        self._skills = skills
        self._replies = replies
        self._max_body = max_body
        self._kept_replies = KeptReplies()

    async def complete(self, request: Request) -> Response:
        """One reply, as a stream of chunks or whole; the same again for a repeated Idempotency-Key."""
        caller = self._skills.recognise(bearer(request.headers))  # before the body is read
        body = await read_body(request, self._max_body)
        wanted = await to_thread.run_sync(parse, body) if len(body) > LONG_BODY else parse(body)
        if (skill := self._skills.get(wanted.model)) is not None:  # a name that is configured, for whoever is refused
            note(request, skill=skill.name)
        grant = self._skills.authorise(wanted.model, caller)
        identity, created = request_id(request), int(time.time())
        note(request, key=grant.key_id)
        key = idempotency_digest(request.headers.get("idempotency-key"), grant.skill.name, grant.key_id)
        digest = hashlib.sha256(body).hexdigest()
        if key is not None and (kept := self._kept_replies.find(key, digest)):
            return repeated(kept, Form(wanted, kept.request_id, kept.created))
        messages = tuple(message.plain() for message in wanted.messages)
        asked = ReplyRequest(grant.skill, messages, wanted.sampling, wanted.stops, grant.key_id, idempotency=key)
        try:
            reply = await self._replies.begin(identity, asked)
        except Answered as answered:
            raise not_kept(answered.known) from None
        form, pieces = Form(wanted, identity, created), reply.pieces()
        if key is not None:
            pieces = self._keep(reply, key, (digest, identity, created))
        if form.stream:
            return ReplyStream(chunks(reply, pieces, form), reply, lambda: note_usage(request, reply))
        response = await whole(request, reply, pieces, form)
        note_usage(request, reply)
        return response

    async def _keep(self, reply: Reply, key: str, request: tuple[str, str, int]) -> AsyncIterator[Piece]:
        """The reply's pieces; once it is whole it is kept under its key."""
        pieces = []
        async for piece in reply.pieces():
            pieces.append(piece)
            yield piece
        assert reply.finish is not None
        text, logprobs = joined(pieces)
        self._kept_replies.keep(key, KeptReply(*request, text, reply.finish, reply.ended_by_server, reply.usage, logprobs))


def repeated(kept: KeptReply, form: Form) -> Response:
    """A kept reply, in the form that is asked for now."""
    headers = {"Idempotent-Replayed": "true"}
    if not form.stream:
        return Response(complete(kept.text, kept.logprobs, kept, form), headers=headers, media_type="application/json")

    async def events() -> AsyncIterator[bytes]:
        for data in (opening(form), text_chunk(form, kept.text, kept.logprobs), *ending(kept, form), "[DONE]"):
            yield event(data)

    return EventSourceResponse(events(), headers=headers, sep="\n")


def joined(pieces: Sequence[Piece]) -> Piece:
    """All pieces as one."""
    return Piece("".join(piece.text for piece in pieces), tuple(token for piece in pieces for token in piece.logprobs))


async def chunks(reply: Reply, pieces: AsyncIterator[Piece], form: Form) -> AsyncIterator[bytes]:
    """The events of a stream: role, text, end, usage if wanted, [DONE]; an error ends it instead."""
    yield event(opening(form))
    try:
        async for piece in pieces:
            yield event(text_chunk(form, *piece))
    except SecateurError as error:
        yield event(encode(problems.body(error)))
        return
    except Exception:
        yield event(encode(problems.body(problems.BUG)))
        raise
    for end in ending(reply, form):
        yield event(end)
    yield event("[DONE]")


async def whole(request: Request, reply: Reply, pieces: AsyncIterator[Piece], form: Form) -> Response:
    """The reply in one piece; generation stops if the client leaves meanwhile."""
    received: list[Piece] = []
    failure: SecateurError | None = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(watch, request, group.cancel_scope)
            try:
                async for piece in pieces:
                    received.append(piece)
            except SecateurError as error:  # raised after the group, which would wrap it
                failure = error
            group.cancel_scope.cancel()
    finally:
        await leave(reply)
    if failure is not None:
        raise failure
    return Response(complete(*joined(received), reply, form), headers=dict(reply.headers), media_type="application/json")


async def watch(request: Request, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def note_usage(request: Request, reply: Reply) -> None:
    """Let the log know what a reply came to."""
    note(request, input_tokens=reply.usage.prompt, output_tokens=reply.usage.output, finish=reply.finish or "none")
