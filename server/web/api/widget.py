"""The widget's API under /v1/widget/, described in docs/reference/widget-protocol.md.

A page sends only new text: the server keeps the history and the system prompt. All refusals of a session look alike,
so that they reveal nothing about the skill.
"""

import hmac
import secrets
from typing import Annotated, Literal

from anyio import to_thread
from msgspec import Meta, Struct
from msgspec.structs import astuple, replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.chat.conversation.session import Session, Sessions, expired
from server.chat.conversation.talk import MOST_COMMENT, MOST_CONTEXT, MOST_TEXT, Question, Talk
from server.chat.conversation.turns import Conversation, Turn
from server.chat.kept.feedback import Feedback, Opinion
from server.errors import Forbidden, InvalidRequest, NotFound, Overloaded
from server.skills import identity
from server.skills.catalogue import Skills
from server.skills.limits import RateLimits
from server.skills.revisions.splitting import answering
from server.skills.skill import Skill
from server.web.http.events import EventStream, numbered
from server.web.http.json_body import read_fields
from server.web.http.requests import RequestState, address, bearer, read_body
from server.web.http.responses import json_response

MAX_BODY = 32 * 1024
SESSION_SECONDS = 5.0  # for the body of a client that has shown no token
Reason = Literal["wrong", "incomplete", "unclear", "other"]
Word = Annotated[str, Meta(min_length=1, max_length=200)]


class SessionBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Opens or refreshes a session."""

    skill: Word
    key: Annotated[str, Meta(max_length=200)] | None = None
    resume: Annotated[str, Meta(max_length=4096)] | None = None
    identity: Annotated[str, Meta(max_length=8192)] | None = None


class QuestionBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A visitor's new message."""

    text: Annotated[str, Meta(min_length=1)]
    message: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")] | None = None
    context: str | None = None
    replace: Word | None = None


class FeedbackBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A visitor's rating of a reply; null withdraws it."""

    reply: Word
    rating: Literal["up", "down"] | None = None
    comment: str = ""
    reasons: Annotated[tuple[Reason, ...], Meta(max_length=4)] = ()


class Visitor(Struct, frozen=True):
    """The holder of a valid session token, the skill or rival that answers, and the conversation, once it has begun."""

    session: Session
    skill: Skill
    conversation: Conversation | None


class WidgetEndpoints:
    """The endpoints for these skills."""

    def __init__(
        self, skills: Skills, sessions: Sessions, talk: Talk, feedback: Feedback, rate_limits: RateLimits
    ) -> None:
        self._skills = skills
        self._sessions = sessions
        self._talk = talk
        self._feedback = feedback
        self._rate_limits = rate_limits

    def routes(self) -> list[Route]:
        """The routes; each GET is a POST too, since browsers omit Origin from a same-origin GET."""
        both = ["GET", "POST"]
        return [
            Route("/v1/widget/session", self.session, methods=["POST"]),
            Route("/v1/widget/conversation", self.conversation, methods=both),
            Route("/v1/widget/messages", self.ask, methods=["POST"]),
            Route("/v1/widget/replies/{id}", self.follow, methods=both),
            Route("/v1/widget/replies/{id}/stop", self.stop, methods=["POST"]),
            Route("/v1/widget/feedback", self.rate, methods=["POST"]),
            Route("/v1/widget/reset", self.reset, methods=["POST"]),
        ]

    async def session(self, request: Request) -> Response:
        """A token for a new conversation, or for the one that the token `resume` names."""
        origin = request.headers.get("origin")
        if origin is None or not self._skills.knows(origin):  # before waiting for the body
            raise _refused()
        body = read_fields(await read_body(request, MAX_BODY, SESSION_SECONDS), SessionBody)
        skill = self._skills.get(body.skill)
        RequestState.of(request.scope).name_skill(skill)
        if skill is None or not skill.admits(origin) or not _opens(skill, body.key):
            raise _refused()
        if self._talk.draining:
            raise Overloaded("The server is shutting down.", retry_after=5, reason="draining")
        await self._rate_limits.session(skill, address(request))
        shown = self._sessions.read(body.resume, "resume") if body.resume else None
        if shown is not None and (shown.skill, shown.origin) != (skill.name, origin):
            shown = None
        person = identity.person(skill.identity, body.identity, skill.name, _person(shown))
        wanted = Session(skill.name, origin, f"cnv_{secrets.token_hex(16)}", *(astuple(person) if person else ()))
        earlier = await self._earlier(shown, wanted)
        session = earlier or wanted
        return json_response(
            {
                "token": self._sessions.sign(session, "session"),
                "expires_in": self._sessions.token_seconds,
                "conversation": session.conversation,
                "resume": self._sessions.sign(session, "resume"),
                "resumed": earlier is not None,
                "skill": _shown(answering(skill, session.conversation)),
                "limits": {"text_bytes": MOST_TEXT, "context_bytes": MOST_CONTEXT, "comment_bytes": MOST_COMMENT},
            },
            no_store=True,
        )

    async def conversation(self, request: Request) -> Response:
        """The kept turns, and the id of the reply that is being generated."""
        visitor = await self.visitor(request)
        kept = visitor.conversation
        running = kept.running if kept else None
        turns = [_turn(turn) for turn in kept.turns] if kept else []
        shown = {
            "conversation": visitor.session.conversation,
            "running": running.id if running else None,
            "turns": turns,
        }
        return json_response(shown, no_store=True)

    async def ask(self, request: Request) -> Response:
        """The stream of a new reply, which is generated to its end even if the client leaves."""
        visitor = await self.visitor(request)
        body = read_fields(await read_body(request, MAX_BODY), QuestionBody)
        _bounded("text", body.text, MOST_TEXT)
        _bounded("context", body.context or "", MOST_CONTEXT)
        await self._rate_limits.message(visitor.skill, visitor.session.conversation, address(request))
        question = Question(body.text, body.message, body.context, body.replace)
        reply = await self._talk.ask(
            RequestState.of(request.scope).request_id, visitor.skill, visitor.session, question
        )
        return EventStream(numbered(self._talk.follow(reply, 0)))

    async def follow(self, request: Request) -> Response:
        """The events of a reply from an event id on, as they come."""
        turn = await self._turn(request)
        return EventStream(numbered(self._talk.follow(turn.reply, _first(request))))

    async def stop(self, request: Request) -> Response:
        """End a reply, and wait until it has ended."""
        turn = await self._turn(request)
        reply = await self._talk.stop(turn.reply)
        return json_response({"reply": reply.id, "finish": reply.finish})

    async def rate(self, request: Request) -> Response:
        """Store a visitor's rating of a reply."""
        visitor = await self.visitor(request)
        body = read_fields(await read_body(request, MAX_BODY), FeedbackBody)
        _bounded("comment", body.comment, MOST_COMMENT)
        turn = _reply_of(visitor.conversation, body.reply)
        await self._rate_limits.rating(visitor.skill, visitor.session.conversation)
        skill = visitor.skill
        opinion = Opinion(
            body.reply, skill.name, turn.revision, body.rating, body.comment, body.reasons, skill.feedback_days
        )
        await to_thread.run_sync(self._feedback.give, opinion)
        if body.rating == "down":
            await to_thread.run_sync(self._feedback.questions.note, visitor.skill, "rated down", turn.reply.question)
        await self._talk.rate(body.reply, body.rating)
        return Response(status_code=204)

    async def reset(self, request: Request) -> Response:
        """Delete the conversation, and end its running reply."""
        visitor = await self.visitor(request)
        await self._talk.forget(visitor.session.conversation)
        return Response(status_code=204)

    async def visitor(self, request: Request) -> Visitor:
        """The visitor with the request's session token; raises Unauthorized or Forbidden."""
        session = self._sessions.read(bearer(request.headers) or "", "session")
        if session is None or session.origin != request.headers.get("origin"):
            raise expired()
        conversation = await self._talk.find(session.conversation)
        if conversation and conversation.gone:
            raise expired()
        skill = self._skills.get(session.skill)
        RequestState.of(request.scope).name_skill(skill)
        if skill is None or not skill.admits(session.origin):
            raise Forbidden("Pages of this origin may not use this skill.", code="origin_not_allowed", reason="origin")
        return Visitor(session, answering(skill, session.conversation), conversation)

    async def _turn(self, request: Request) -> Turn:
        """The turn of the reply whose id is in the path; raises NotFound, and as `visitor`."""
        visitor = await self.visitor(request)
        return _reply_of(visitor.conversation, request.path_params["id"])

    async def _earlier(self, shown: Session | None, wanted: Session) -> Session | None:
        """The session of a `resume` token, else None: if its person and groups are those of `wanted`, and it is kept.

        With other groups a new conversation begins: replies of the old one may tell what the new groups may not see.
        """
        if shown is None or (shown.person, shown.groups) != (wanted.person, wanted.groups):
            return None
        found = await self._talk.find(shown.conversation)
        if found is None or found.gone:
            return None
        return replace(shown, verified=wanted.verified)


def _person(session: Session | None) -> identity.Person | None:
    """The person of a session, None without one."""
    if session is None or session.person is None:
        return None
    return identity.Person(session.person, session.groups, session.verified)


def _refused() -> Forbidden:
    return Forbidden("This page may not open a session of this skill.", code="session_refused", reason="origin")


def _opens(skill: Skill, key: str | None) -> bool:
    """Whether `key` is one of the skill's site keys; True if it has none."""
    shown = (key or "").encode(errors="replace")
    return not skill.site_keys or sum(hmac.compare_digest(shown, known.encode()) for known in skill.site_keys) > 0


def _shown(skill: Skill) -> dict[str, object]:
    """What the widget shows before the first message."""
    return {
        "name": skill.name,
        "title": skill.title or skill.name,
        "greeting": skill.greeting,
        "starters": skill.starters,
        "follow_ups": skill.follow_ups,
        "image_origins": skill.image_origins,
        "handover": skill.handover and skill.handover.shown,
    }


def _turn(turn: Turn) -> dict[str, object]:
    """A turn as the widget restores it after a page load."""
    made = turn.reply
    shown = {
        "id": made.id,
        "text": made.text,
        "finish": made.finish,
        "next": made.next,
        "citations": made.citations,
        "rating": turn.rating,
    }
    return {"question": made.question, "reply": shown}


def _reply_of(conversation: Conversation | None, id: str) -> Turn:
    turn = conversation.find(id) if conversation else None
    if turn is None:
        raise NotFound("There is no such reply in this conversation.", code="reply_unknown")
    return turn


def _first(request: Request) -> int:
    """The first event id wanted: `from` in the query, or the one after EventSource's Last-Event-ID; default 0."""
    asked, last = request.query_params.get("from"), request.headers.get("last-event-id")
    shown = asked if asked is not None else last
    if shown is None:
        return 0
    if not (shown.isascii() and shown.isdigit() and len(shown) < 10):
        raise InvalidRequest("`from` must be a whole number.", param="from")
    return int(shown) + (asked is None)


def _bounded(name: str, text: str, most: int) -> None:
    """Raise InvalidRequest unless `text` is valid Unicode of at most `most` bytes."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("A lone surrogate is not text.", param=name) from None
    if size > most:
        raise InvalidRequest(f"`{name}` has {size} bytes; at most {most} are allowed.", param=name)
