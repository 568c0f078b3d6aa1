"""Changes of what is served: made, recorded in the audit log, and taken back if the server cannot serve them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import msgspec
from anyio import to_thread
from msgspec import Struct
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response

from server.errors import ConfigError, Forbidden, InvalidRequest, SecateurError
from server.metering.audit.chain import Event
from server.models.reload import Reloader, move_event
from server.skills.revisions.store import Move, Revisions
from server.skills.revisions.text import LONGEST
from server.web.http.requests import address, read_body
from server.web.http.responses import json_response

T = TypeVar("T")
S = TypeVar("S", bound=Struct)
MOST_BYTES = 4 * LONGEST


class Mover:
    """Changes the revisions of a server whose page may `edit`; `record` writes the audit log."""

    def __init__(
        self, revisions: Revisions | None, reloader: Reloader, record: Callable[[Event], "Future[None]"], *, edit: bool
    ) -> None:
        self.revisions = revisions
        self._record = record
        self._reloader = reloader
        self._edit = edit

    def editable(self) -> Revisions:
        """The revisions; raises Forbidden if this page only reads."""
        if self.revisions is None or not self._edit:
            raise Forbidden('This page only shows skills: `skill_revisions = "edit"` allows changes.', code="read_only")
        return self.revisions

    async def record(self, event: Event) -> None:
        """Write an entry of the audit log, and wait until it is durable; raises LedgerUnavailable."""
        await asyncio.wrap_future(self._record(event))

    async def move(self, request: Request, change: Callable[[], Move]) -> Response:
        """The move as JSON, once it is served; raises InvalidRequest and serves the former revision if it cannot be."""
        revisions = self.editable()
        made = await refusing(change)
        await self.record(move_event(made, address(request)))
        await self.serve(lambda: move_event(_former(revisions, made), address(request)))
        return json_response(asdict(made), no_store=True)

    async def reload(self) -> None:
        """Serve what is published now; raises SecateurError."""
        await self._reloader.reload()

    async def serve(self, take_back: Callable[[], Event]) -> None:
        """Reload; if that fails, `take_back` undoes the change and returns its audit entry. Raises InvalidRequest."""
        try:
            await self.reload()
        except SecateurError as error:
            await self.record(await to_thread.run_sync(take_back))
            raise InvalidRequest(
                f"It cannot be served, so nothing was changed: {error}", code="skills_invalid"
            ) from None


async def read_json(request: Request, kind: type[S], most: int = MOST_BYTES) -> S:
    """The body as `kind`; raises InvalidRequest."""
    body = await read_body(request, most)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise InvalidRequest(str(error), code="invalid_body") from None


async def refusing(change: Callable[[], T]) -> T:
    """The result of `change`, in a thread; a ConfigError becomes InvalidRequest."""
    try:
        return await to_thread.run_sync(change)
    except ConfigError as error:
        raise InvalidRequest(str(error), code="skills_invalid") from None


def _former(revisions: Revisions, made: Move) -> Move:
    """Publish what was served before `made`."""
    before = [move.number for move in revisions.moves(made.skill) if move.id < made.id]
    why = f"{made.skill}@{made.number} cannot be served"
    if before and before[-1]:
        return revisions.publish(made.skill, before[-1], action="rollback", author="server", reason=why)
    return revisions.withdraw(made.skill, author="server", reason=why)
