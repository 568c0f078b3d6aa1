"""POST /admin/skills/{name}/try: what a draft answers, streamed with its prompt, passages, probabilities and timings.

The reply is metered like any other, to the skill, under the key `draft` and the draft's own revision.
"""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal

import msgspec
from anyio import to_thread
from msgspec import Meta, Struct
from msgspec.structs import replace
from sse_starlette.event import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.chat.choices.reply_text import Piece
from server.chat.grounded import questions_of
from server.chat.reply import Replies, Reply
from server.chat.request import ReplyRequest
from server.engine.sequence import RequestedSampling
from server.errors import ConfigError, InvalidRequest, SecateurError
from server.knowledge.grounding.grounding import PASSAGES, Question, Searchable, ground
from server.knowledge.search import Found
from server.models.rollout import Rollout
from server.models.shelf import Shelf
from server.skills.revisions.text import LONGEST, parse
from server.web.http import problems
from server.web.http.events import ReplyStream
from server.web.http.requests import RequestState, read_body

DRAFT = "draft"
"""The key's id in the ledger of tokens that drafts use."""
MOST_BYTES = 6 * LONGEST
TOP = 5
MOST_SHOWN = 600
"""Characters of a passage that are shown."""
Name = Literal["passages", "prompt", "text", "end", "error"]


class Turn(Struct, frozen=True, forbid_unknown_fields=True):
    """A turn of the conversation with the draft."""

    role: Literal["user", "assistant"]
    content: Annotated[str, Meta(min_length=1, max_length=100_000)]


class Trial(Struct, frozen=True, forbid_unknown_fields=True):
    """A draft, and the conversation that it is to go on with."""

    text: str
    messages: Annotated[tuple[Turn, ...], Meta(min_length=1, max_length=100)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    """Instead of the draft's own."""


class Playground:
    """The endpoint; files of keys that drafts name are in `folder`."""

    def __init__(self, replies: Replies, rollout: Rollout, shelf: Shelf, folder: Path) -> None:
        self._replies = replies
        self._rollout = rollout
        self._shelf = shelf
        self._folder = folder

    def routes(self) -> list[Route]:
        """The route, on the admin listener."""
        return [Route("/admin/skills/{name}/try", self.try_out, methods=["POST"])]

    async def try_out(self, request: Request) -> Response:
        """Stream the events `prompt`, `text` and `end`, or `error`; raises InvalidRequest, and as `Replies.begin`."""
        asked = await _trial(request)
        try:
            skill = await to_thread.run_sync(parse, asked.text, self._folder, request.path_params["name"])
        except ConfigError as error:
            raise InvalidRequest(str(error), code="skills_invalid") from None
        if self._rollout.find(self._rollout.reference(skill.model)) is None or skill.encoder:
            raise InvalidRequest("Its model is not loaded: publish the skill with it once.", code="skills_invalid")
        wanted = ReplyRequest(
            replace(skill, prompt_visible=True, tools=False),
            tuple({"role": turn.role, "content": turn.content} for turn in asked.messages),
            RequestedSampling(logprobs=TOP, temperature=asked.temperature),
            key_id=DRAFT,
            prompt_shown=True,
        )
        search = await self._search(wanted)
        state = RequestState.of(request.scope)
        begun = monotonic()
        reply = await self._replies.begin(state.request_id, wanted)
        return ReplyStream(_events(reply, begun, search), reply, lambda: None)

    async def _search(self, wanted: ReplyRequest) -> Mapping[str, Any]:
        """What the draft's knowledge finds for the question, and what it decides; opens one that no other skill names.

        Raises InvalidRequest if it cannot be opened.
        """
        try:
            self._shelf.add(await to_thread.run_sync(self._shelf.load, [wanted.skill]))
        except SecateurError as error:
            raise InvalidRequest(f"Its knowledge cannot be opened: {error}.", code="skills_invalid") from None
        if (knowledge := self._shelf.of(wanted.skill)) is None:
            return {"kind": "none", "passages": []}
        return await to_thread.run_sync(_found, knowledge, questions_of(wanted))


async def _trial(request: Request) -> Trial:
    """The body; raises InvalidRequest."""
    try:
        return msgspec.json.decode(await read_body(request, MOST_BYTES), type=Trial)
    except msgspec.DecodeError as error:
        raise InvalidRequest(str(error), code="invalid_body") from None


def _found(knowledge: Searchable, questions: tuple[str, ...]) -> Mapping[str, Any]:
    """How the knowledge decides on a question, with the passages that it quotes, or else the nearest ones."""
    decided = ground(knowledge, Question(questions))
    found = decided.found or knowledge.search(questions[-1], PASSAGES, frozenset())
    return {"kind": decided.kind, "passages": [_passage(one) for one in found]}


def _passage(one: Found) -> Mapping[str, Any]:
    shown = one.passage
    return {"title": shown.heading or shown.title, "url": shown.url, "text": shown.text[:MOST_SHOWN],
            "relevance": round(one.relevance, 3)}  # fmt: skip


async def _events(reply: Reply, begun: float, search: Mapping[str, Any]) -> AsyncIterator[ServerSentEvent]:
    """The reply as events; times are in seconds since `begun`."""
    yield _event("passages", search)
    first = 0.0
    citations: list[dict[str, str]] = []
    try:
        async for piece in reply.pieces():
            first = first or monotonic() - begun
            if piece.prompt is not None:
                yield _event("prompt", {"text": piece.prompt.text, "tokens": len(piece.prompt.ids)})
            if piece.text or piece.logprobs:
                yield _event("text", _text(piece))
            citations += [{"title": one.passage.title, "url": one.passage.url} for one in piece.citations]
    except SecateurError as error:
        yield _event("error", problems.body(error)["error"])
        return
    usage = reply.usage
    yield _event(
        "end",
        {
            "finish": reply.finish or reply.ended_by_server,
            "first": round(first, 4),
            "seconds": round(monotonic() - begun, 4),
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached,
            "completion_tokens": usage.output,
            "citations": citations,
        },
    )


def _text(piece: Piece) -> dict[str, Any]:
    """A piece of text with the probabilities of its tokens."""
    tokens = [
        {
            "token": one.token,
            "logprob": round(one.logprob, 3),
            "top": [[other.token, round(other.logprob, 3)] for other in one.top_logprobs],
        }
        for one in piece.logprobs
    ]
    return {"text": piece.text, "tokens": tokens}


def _event(name: Name, data: Mapping[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(msgspec.json.encode(data).decode(), event=name, sep="\n")
