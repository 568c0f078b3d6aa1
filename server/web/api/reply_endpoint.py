"""Answers a request by one metered reply, streamed or whole; each wire format brings a schema and a `ReplyFormat`."""

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import anyio
from anyio import to_thread
from msgspec import Struct
from msgspec.structs import replace
from sse_starlette.event import ServerSentEvent
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from server.chat.choices.finished import FinishedReply
from server.chat.choices.reply_text import Piece
from server.chat.kept.idempotency import KeptReply, idempotency_digest
from server.chat.kept.idempotent_replies import IdempotentReplies, Origin, Started, finished
from server.chat.reply import Reply
from server.chat.request import ReplyRequest
from server.engine.sequence import Finish
from server.errors import InvalidRequest, SecateurError
from server.metering.ledger.records import Outcome, Usage
from server.skills.catalogue import Skills
from server.skills.skill import Skill
from server.web.http import problems
from server.web.http.events import EventStream, ReplyStream, leave
from server.web.http.requests import RequestState, bearer, read_body

LONG_BODY = 1 << 16  # bytes; longer bodies are parsed in a thread, so that other streams go on


class Ended(Protocol):
    """A reply that ended: a `Reply` or a `FinishedReply`."""

    @property
    def usage(self) -> Usage:
        """Its tokens."""

    @property
    def finish(self) -> Finish | None:
        """OpenAI's finish_reason of the first choice."""

    @property
    def finishes(self) -> Sequence[Finish | None]:
        """OpenAI's finish_reason of each choice."""

    @property
    def ended_by_server(self) -> Outcome | None:
        """Why the server ended it, or None if the model or the caller did."""

    @property
    def clamped(self) -> int | None:
        """The `max_tokens` that was granted, if more was asked for."""


class ReplyFormat(Protocol):
    """Writes one reply in a wire format. May count events and gather text: each instance serves one response."""

    def opening(self, prompt: int) -> Iterable[ServerSentEvent]:
        """The events before any text; `prompt` is the number of prompt tokens."""

    def piece(self, piece: Piece) -> Iterable[ServerSentEvent]:
        """The events of a piece of the reply."""

    def ending(self, reply: Ended) -> Iterable[ServerSentEvent]:
        """The last events of a reply that ended."""

    def failure(self, error: SecateurError) -> Iterable[ServerSentEvent]:
        """The last events of a reply that failed after its stream had begun."""

    def whole(self, piece: Piece, reply: FinishedReply) -> str:
        """The whole reply as a JSON object; `piece` is its first choice."""


class Wanted(Protocol):
    """A parsed request body."""

    @property
    def model(self) -> str:
        """The name of a skill."""

    @property
    def stream(self) -> bool:
        """Whether the reply is streamed."""

    def ask(self, skill: Skill) -> ReplyRequest:
        """The request for one reply; the caller's key and the idempotency digest are added to it."""

    def format(self, origin: Origin) -> ReplyFormat:
        """A new writer of the response to the request `origin`."""


class Dialect(Struct, frozen=True):
    """How an API authenticates its callers and writes errors; by default as OpenAI does."""

    credential: Callable[[Headers], str | None] = bearer
    error_body: Callable[[SecateurError], dict[str, Any]] = problems.body
    count_head: Mapping[str, str] = MappingProxyType({})
    """What a count of tokens has beside the number."""


class ReplyEndpoint:
    """An endpoint whose bodies `parse` reads; `max_body` is in bytes."""

    def __init__(
        self,
        parse: Callable[[bytes], Wanted],
        skills: Skills,
        replies: IdempotentReplies,
        *,
        max_body: int,
        dialect: Dialect | None = None,
    ) -> None:
        self._parse = parse
        self._skills = skills
        self._replies = replies
        self._max_body = max_body
        self._dialect = dialect or Dialect()

    async def answer(self, request: Request) -> Response:
        """One reply, as a stream of events or whole; the kept one for a repeated Idempotency-Key."""
        problems.write_errors_by(self._dialect.error_body, request)
        caller = self._skills.recognise(self._dialect.credential(request.headers))  # before the body is read
        body = await read_body(request, self._max_body)
        wanted = await to_thread.run_sync(self._parse, body) if len(body) > LONG_BODY else self._parse(body)
        state = RequestState.of(request.scope)
        state.name_skill(self._skills.get(wanted.model))
        grant = self._skills.authorise(wanted.model, caller)
        state.key = grant.key_id
        check_speaks(grant.skill)
        key = idempotency_digest(request.headers.get("idempotency-key"), grant.skill.name, grant.key_id)
        asked = replace(wanted.ask(grant.skill), key_id=grant.key_id, groups=grant.groups, idempotency=key)
        origin = Origin(digest_of(request.url.path, body), state.request_id, int(time.time()))
        answer = await self._replies.begin(origin, asked)
        if isinstance(answer, KeptReply):
            form = wanted.format(Origin(answer.body, answer.request_id, answer.created))
            return repeated(answer, form, stream=wanted.stream)
        form = wanted.format(origin)
        if wanted.stream:
            return ReplyStream(events(answer, form), answer.reply, lambda: note_usage(state, answer.reply))
        response = await whole(request, answer, form)
        note_usage(state, answer.reply)
        return response


def check_speaks(skill: Skill) -> None:
    """Raise InvalidRequest for a skill that only embeds."""
    if skill.encoder:
        raise InvalidRequest(f"The skill {skill.name!r} only embeds: send it to /v1/embeddings.", param="model")


def digest_of(path: str, body: bytes) -> str:
    """The SHA-256 that tells requests apart: of the path and the body."""
    return hashlib.sha256(path.encode() + b"\0" + body).hexdigest()


def repeated(kept: KeptReply, form: ReplyFormat, *, stream: bool) -> Response:
    """Send a kept reply again, streamed or whole as this request asks."""
    headers = {"Idempotent-Replayed": "true"}
    reply = kept.reply
    if not stream:
        return Response(form.whole(reply.choices[0].piece, reply), headers=headers, media_type="application/json")
    pieces = [choice.piece._replace(choice=number) for number, choice in enumerate(reply.choices)]

    async def replayed() -> AsyncIterator[ServerSentEvent]:
        said = (event for piece in pieces for event in form.piece(piece))
        for event in (*form.opening(reply.usage.prompt), *said, *form.ending(reply)):
            yield event

    return EventStream(replayed(), headers)


async def events(started: Started, form: ReplyFormat) -> AsyncIterator[ServerSentEvent]:
    """The events of a stream as the reply is generated; an error ends it with the format's own event."""
    bug: Exception | None = None
    for event in form.opening(started.reply.prompt):
        yield event
    try:
        async for piece in started.pieces:
            for event in form.piece(piece):
                yield event
        last = form.ending(started.reply)
    except SecateurError as error:
        last = form.failure(error)
    except Exception as error:
        bug, last = error, form.failure(problems.BUG)
    for event in last:
        yield event
    if bug is not None:
        raise bug


async def whole(request: Request, started: Started, form: ReplyFormat) -> Response:
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
    ended = finished(reply, received)
    body = form.whole(ended.choices[0].piece, ended)
    return Response(body, headers=dict(reply.headers), media_type="application/json")


async def cancel_on_disconnect(request: Request, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def note_usage(state: RequestState, reply: Reply) -> None:
    """Record the reply's tokens and finish reason for the access log."""
    state.input_tokens, state.output_tokens = reply.usage.prompt, reply.usage.output
    state.finish = reply.finish or "none"
