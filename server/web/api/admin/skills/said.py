"""GET below /admin/skills/{name}: conversations, and questions without an answer. Each look leaves an audit entry."""

from collections.abc import Sequence

import msgspec
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.chat.conversation.erasure import ExportedConversation, recent
from server.chat.kept.feedback import Feedback, FeedbackUnavailable
from server.chat.kept.questions import Asked, listed
from server.chat.kept.texts import Texts
from server.config import Config
from server.errors import ConfigError, InvalidRequest
from server.metering.audit.chain import Event
from server.storage.database import StorageError
from server.web.access.guard import who
from server.web.api.admin.skills.moving import Mover
from server.web.http.requests import address
from server.web.http.responses import json_response

MOST = 50


class SaidEndpoints:
    """The endpoints; conversations are shown to operators, where the settings keep them in a database."""

    def __init__(self, config: Config, texts: Texts, feedback: Feedback, mover: Mover) -> None:
        self._config = config
        self._texts = texts
        self._feedback = feedback
        self._mover = mover

    def routes(self) -> list[Route]:
        """The routes, on the admin listener."""
        return [
            Route("/admin/skills/{name}/conversations", self.conversations),
            Route("/admin/skills/{name}/questions", self.questions),
        ]

    async def conversations(self, request: Request) -> Response:
        """The latest conversations with their ratings; raises InvalidRequest if they are in memory alone."""
        name = request.path_params["name"]
        if self._config.conversation_storage == "memory":
            raise InvalidRequest(
                "Conversations are in this server's memory alone, so the page shows none: `conversation_storage` keeps "
                "them in a database.",
                code="conversations_unkept",
            )
        await self._looked(request, "conversations.view", name)

        def read() -> Sequence[ExportedConversation]:
            try:
                return recent(self._texts, self._feedback, name, MOST)
            except ConfigError as error:
                raise InvalidRequest(f"{error}.", code="conversations_unkept") from None

        return json_response({"conversations": msgspec.to_builtins(await to_thread.run_sync(read))}, no_store=True)

    async def questions(self, request: Request) -> Response:
        """Questions that were refused or whose answers were rated down, the most frequent first."""
        name = request.path_params["name"]
        await self._looked(request, "questions.view", name)

        def read() -> Sequence[Asked]:
            try:
                return listed(self._config.feedback_file, name, MOST)
            except StorageError as error:
                raise FeedbackUnavailable(f"The questions cannot be read: {error}.") from None

        found = await to_thread.run_sync(read)
        return json_response({"questions": [one._asdict() for one in found]}, no_store=True)

    async def _looked(self, request: Request, action: str, name: str) -> None:
        """Note who looks, before anything is shown; raises LedgerUnavailable."""
        await self._mover.record(Event(who(request), action, name, address(request)))
