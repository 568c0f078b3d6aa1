"""GET and POST /admin/skills/{name}/experiment: compares the published revision with a rival, and decides."""

from typing import Annotated

import msgspec
from anyio import to_thread
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.chat.conversation.experiment import Results, results
from server.chat.kept.feedback import Feedback
from server.errors import NotFound
from server.metering.audit.chain import Event
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import LedgerUnavailable
from server.models.reload import trial_event
from server.skills.catalogue import Skills
from server.skills.revisions.connection import LONGEST_REASON
from server.skills.revisions.experiments import Trial
from server.skills.revisions.splitting import running
from server.storage.database import StorageError
from server.web.access.guard import who
from server.web.api.admin.skills.moving import Mover, read_json, refusing
from server.web.http.requests import address
from server.web.http.responses import json_response

Reason = Annotated[str, Meta(max_length=LONGEST_REASON)]


class Start(Struct, frozen=True, forbid_unknown_fields=True):
    """A revision to compare with the published one, and the share of conversations that it answers."""

    rival: Annotated[int, Meta(ge=1)]
    share: float = 0.5
    reason: Reason = ""


class Decide(Struct, frozen=True, forbid_unknown_fields=True):
    """The winner: one of the two revisions."""

    number: Annotated[int, Meta(ge=1)]
    reason: Reason = ""


class Stop(Struct, frozen=True, forbid_unknown_fields=True):
    """The reason of a stop."""

    reason: Reason = ""


class ExperimentEndpoints:
    """The endpoints; what they change is served at once, or taken back by `mover`."""

    def __init__(self, skills: Skills, ledger: Ledger, feedback: Feedback, mover: Mover) -> None:
        self._skills = skills
        self._ledger = ledger
        self._feedback = feedback
        self._mover = mover

    def routes(self) -> list[Route]:
        """The routes, on the admin listener."""
        return [
            Route("/admin/skills/{name}/experiment", self.show),
            Route("/admin/skills/{name}/experiment/start", self.start, methods=["POST"]),
            Route("/admin/skills/{name}/experiment/stop", self.stop, methods=["POST"]),
            Route("/admin/skills/{name}/experiment/decide", self.decide, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """The figures of the running experiment, or `null`; raises NotFound, LedgerUnavailable, FeedbackUnavailable."""
        skill = self._skills.get(request.path_params["name"])
        if skill is None:
            raise NotFound("There is no such skill.", param="name")
        experiment = running(skill)

        def read() -> Results | None:
            if experiment is None:
                return None
            try:
                with self._ledger.snapshot() as database:
                    return results(skill, experiment, database, self._feedback)
            except StorageError as error:
                raise LedgerUnavailable(str(error)) from None

        return json_response({"experiment": msgspec.to_builtins(await to_thread.run_sync(read))}, no_store=True)

    async def start(self, request: Request) -> Response:
        """Split the skill's conversations from now on; 400 for two revisions that cannot be compared."""
        name, asked, revisions = request.path_params["name"], await read_json(request, Start), self._mover.editable()
        made = await refusing(
            lambda: revisions.compare(name, asked.rival, asked.share, author=who(request), reason=asked.reason)
        )
        await self._mover.record(trial_event(made, address(request)))

        def take_back() -> Event:
            why = f"{name}@{asked.rival} cannot be served"
            return trial_event(revisions.end(name, author="server", reason=why), address(request))

        await self._mover.serve(take_back)
        return json_response(msgspec.to_builtins(made), 201, no_store=True)

    async def stop(self, request: Request) -> Response:
        """Let the published revision answer everybody; 404 if no experiment runs."""
        name, asked, revisions = request.path_params["name"], await read_json(request, Stop), self._mover.editable()
        made = await refusing(lambda: revisions.end(name, author=who(request), reason=asked.reason))
        await self._stopped(request, made)
        return json_response({}, no_store=True)

    async def decide(self, request: Request) -> Response:
        """Publish the winner, which ends the experiment; if it is the published one, only end it."""
        name, asked, revisions = request.path_params["name"], await read_json(request, Decide), self._mover.editable()
        made = await refusing(lambda: revisions.decide(name, asked.number, author=who(request), reason=asked.reason))
        if isinstance(made, Trial):
            await self._stopped(request, made)
            return json_response({"number": asked.number}, no_store=True)
        return await self._mover.move(request, lambda: made)

    async def _stopped(self, request: Request, made: Trial) -> None:
        await self._mover.record(trial_event(made, address(request)))
        await self._mover.reload()
