"""POST /admin/reload on the admin listener: the skills' files again, all at once or not at all."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.errors import InvalidRequest, SecateurError
from server.models.reload import Reloader
from server.web.api.models import reply
from server.web.http import problems


class Reload:
    """The endpoint, for what reads them."""

    def __init__(self, reloader: Reloader) -> None:
        self._reloader = reloader

    async def reload(self, _: Request) -> Response:
        """Name and revision of each skill; 400 with the file and the field, or the model, where one is wrong."""
        try:
            return reply({"skills": await self._reloader.reload()}, no_store=True)
        except SecateurError as error:
            refused = InvalidRequest(f"Nothing was reloaded: {error}", code="skills_invalid")
            told = problems.body(refused)
            told["error"]["message"] = refused.message  # of the operator's own files, and whole
            return Response(msgspec.json.encode(told), refused.status, media_type="application/json")
