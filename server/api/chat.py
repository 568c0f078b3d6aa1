"""POST /v1/chat/completions, streamed and whole, exactly in OpenAI's format; translates and decides nothing else."""

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.api import problems
from server.api.events import ReplyStream, leave
from server.api.requests import credentials, note, read_body, request_id
from server.api.schema import ChatRequest, parse
from server.errors import SecateurError
from server.metering.ledger import Usage
from server.reply import Asked, Replies, Reply
from server.skills import Grant, Skills


class Chat:
    """The endpoint, for these skills."""

    def __init__(self, skills: Skills, replies: Replies, *, max_body: int) -> None:
        self._skills = skills
        self._replies = replies
        self._max_body = max_body

    async def complete(self, request: Request) -> Response:
        """One reply, as a stream of chunks or whole."""
        wanted = parse(await read_body(request, self._max_body))
        grant = self._skills.authorise(wanted.model, credentials(request))
        identity = request_id(request)
        note(request, skill=grant.skill.name, key=grant.key_id)
        reply = await self._replies.begin(identity, asked(wanted, grant))
        head = {"id": f"chatcmpl-{identity.removeprefix('req_')}", "created": int(time.time()), "model": wanted.model}
        if wanted.stream:
            include_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
            return ReplyStream(
                chunks(reply, head, include_usage=include_usage), reply, lambda: note_usage(request, reply)
            )
        response = await whole(request, reply, head)
        note_usage(request, reply)
        return response


def asked(wanted: ChatRequest, grant: Grant) -> Asked:
    """The request in our terms."""
    messages = tuple(message.plain() for message in wanted.messages)
    return Asked(
        skill=grant.skill,
        messages=messages,
        max_tokens=wanted.limit,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        seed=wanted.seed,
        stop=wanted.stops,
        key_id=grant.key_id,
    )


async def chunks(reply: Reply, head: dict[str, Any], *, include_usage: bool) -> AsyncIterator[str]:
    """The events of a stream: role, text, end, usage if wanted, [DONE]; an error ends it instead."""
    head = {**head, "object": "chat.completion.chunk"}
    extra = {"usage": None} if include_usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return encode({**head, "choices": [choice], **extra})

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    try:
        async for text in reply.pieces():
            yield chunk({"content": text})
    except SecateurError as error:
        yield encode(problems.body(error))
        return
    except Exception:
        yield encode(problems.body(problems.BUG))
        raise
    yield chunk({}, reply.finish)
    if include_usage:
        yield encode({**head, "choices": [], "usage": usage(reply.usage)})
    yield "[DONE]"


async def whole(request: Request, reply: Reply, head: dict[str, Any]) -> Response:
    """The reply in one piece; generation stops if the client leaves meanwhile."""
    text: list[str] = []
    failure: SecateurError | None = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(watch, request, group.cancel_scope)
            try:
                async for piece in reply.pieces():
                    text.append(piece)
            except SecateurError as error:  # raised after the group, which would wrap it
                failure = error
            group.cancel_scope.cancel()
    finally:
        await leave(reply)
    if failure is not None:
        raise failure
    message = {"role": "assistant", "content": "".join(text), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
    body = {**head, "object": "chat.completion", "choices": [choice], "usage": usage(reply.usage)}
    return Response(encode(body), headers=dict(reply.rates), media_type="application/json")


async def watch(request: Request, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def note_usage(request: Request, reply: Reply) -> None:
    """Let the log know what a reply came to."""
    note(request, input_tokens=reply.usage.prompt, output_tokens=reply.usage.output, finish=reply.finish or "none")


def usage(tokens: Usage) -> dict[str, Any]:
    """OpenAI's usage object, from the same counts that the ledger has."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }


def encode(value: dict[str, Any]) -> str:
    """Compact JSON."""
    return msgspec.json.encode(value).decode()
