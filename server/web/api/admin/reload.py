"""POST /admin/reload on the admin listener: rereads the skills' files, all of them or none."""

from starlette.requests import Request
from starlette.responses import Response

from server.errors import InvalidRequest, SecateurError
from server.models.reload import Reloader
from server.web.http import problems
from server.web.http.responses import json_response


class ReloadEndpoint:
    """The endpoint for `reloader`."""

    def __init__(self, reloader: Reloader) -> None:
        self._reloader = reloader

    async def reload(self, _: Request) -> Response:
        """Each skill's name and revision; 400 with the file and field, or the model, that is wrong."""
        try:
            return json_response({"skills": await self._reloader.reload()}, no_store=True)
        except SecateurError as error:
            refused = InvalidRequest(f"Nothing was reloaded: {error}", code="skills_invalid")
            told = problems.body(refused)
            told["error"]["message"] = refused.message  # not truncated: it holds only the operator's own files
            return json_response(told, refused.status)
