"""GET /admin/feedback on the admin listener: visitors' ratings with their reasons and comments, the newest first."""

import msgspec
from anyio import to_thread
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from server.chat.kept.feedback import Chosen, Feedback
from server.errors import InvalidRequest
from server.web.http.responses import json_response

MOST = 1000


class Query(Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters; each may be left out."""

    skill: str = ""
    rating: str = ""
    silent: bool = False
    limit: int = 100


class FeedbackEndpoint:
    """The endpoint; comments are text as visitors wrote it, so that a page has to escape them."""

    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback

    async def get(self, request: Request) -> Response:
        """`ratings` as JSON; raises InvalidRequest and FeedbackUnavailable."""
        try:
            query = msgspec.convert(dict(request.query_params), Query, strict=False)
            chosen = msgspec.convert(msgspec.to_builtins(query), Chosen)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"{error}; there are skill, rating (up or down), silent and limit.") from None
        chosen = msgspec.structs.replace(chosen, limit=max(0, min(chosen.limit, MOST)))
        found = await to_thread.run_sync(self._feedback.given, chosen)
        return json_response({"ratings": [one._asdict() for one in found]}, no_store=True)
