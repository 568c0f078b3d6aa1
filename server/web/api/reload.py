"""POST /admin/reload on the admin listener: rereads the skills' files, all of them or none."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.errors import InvalidRequest, SecateurError
from server.models.reload import Reloader
from server.web.api.models import reply
from server.web.http import problems


class ReloadEndpoint:
    """The endpoint for `reloader`."""

    def __init__(self, reloader: Reloader) -> None:
        self._reloader = reloader

    async def reload(self, _: Request) -> Response:
        """Each skill's name and revision; 400 with the file and field, or the model, that is wrong."""
        try:
            return reply({"skills": await self._reloader.reload()}, no_store=True)
        except SecateurError as error:
            refused = InvalidRequest(f"Nothing was reloaded: {error}", code="skills_invalid")
            told = problems.body(refused)
            told["error"]["message"] = refused.message  # not truncated: it holds only the operator's own files
            return Response(msgspec.json.encode(told), refused.status, media_type="application/json")
