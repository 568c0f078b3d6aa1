"""POST /v1/widget/handover: sends a conversation to the webhook of its skill, when the visitor asked for a person.

The visitor has seen what is sent. Nothing of it is logged or kept here.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from anyio import to_thread
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from server.errors import NotFound, Overloaded
from server.metering.webhooks import Target, Undelivered, post
from server.skills.limits import RateLimits
from server.web.api.widget import MAX_BODY, Visitor
from server.web.http.json_body import read_fields
from server.web.http.requests import address, read_body

TYPE = "secateur.handover.requested.v1"
logger = logging.getLogger(__name__)


class HandoverBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What the visitor adds to the conversation."""

    note: Annotated[str, Meta(max_length=1000)] = ""
    contact: Annotated[str, Meta(max_length=200)] = ""
    """How the visitor can be reached."""


class HandoverEndpoint:
    """The endpoint; `visitor` returns who a request is from, or raises Unauthorized or Forbidden."""

    def __init__(self, visitor: Callable[[Request], Awaitable[Visitor]], rate_limits: RateLimits) -> None:
        self._visitor = visitor
        self._rate_limits = rate_limits

    async def send(self, request: Request) -> Response:
        """204 once the webhook has accepted the transcript; raises NotFound and Overloaded."""
        visitor = await self._visitor(request)
        body = read_fields(await read_body(request, MAX_BODY), HandoverBody)
        handover = visitor.skill.handover
        if handover is None or not handover.webhook:
            raise NotFound("This skill hands nothing over.", code="not_found")
        await self._rate_limits.message(visitor.skill, visitor.session.conversation, address(request))
        try:
            await to_thread.run_sync(post, Target(handover.webhook), [event(visitor, body)])
        except Undelivered as error:
            logger.warning("A handover of the skill %r was not delivered: %s", visitor.skill.name, error)
            raise Overloaded(
                "The message could not be delivered; try again.", retry_after=5, reason="handover"
            ) from None
        return Response(status_code=204)


def event(visitor: Visitor, body: HandoverBody) -> dict[str, Any]:
    """The CloudEvent with the transcript, oldest turn first."""
    session = visitor.session
    turns = visitor.conversation.turns if visitor.conversation else []
    return {
        "specversion": "1.0",
        "id": f"hnd_{secrets.token_hex(16)}",
        "source": session.origin,
        "type": TYPE,
        "subject": visitor.skill.name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "datacontenttype": "application/json",
        "data": {
            "skill": visitor.skill.name,
            "conversation": session.conversation,
            "note": body.note,
            "contact": body.contact,
            "turns": [{"question": turn.reply.question, "answer": turn.reply.text} for turn in turns],
        },
    }
