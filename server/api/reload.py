"""POST /admin/reload on the admin listener: the skills' files again, all at once or not at all."""

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from server.api.models import reply
from server.config import Config
from server.errors import ConfigError, InvalidRequest
from server.reload import reload
from server.skills import Skills


class Reload:
    """The endpoint, for these settings and skills."""

    def __init__(self, config: Config, skills: Skills) -> None:
        self._config = config
        self._skills = skills

    async def reload(self, _: Request) -> Response:
        """Name and revision of each skill; 400 with the file and the field where one is wrong."""
        try:
            return reply({"skills": await to_thread.run_sync(reload, self._config, self._skills)}, no_store=True)
        except ConfigError as error:
            raise InvalidRequest(f"Nothing was reloaded: {error}", code="skills_invalid") from None
