"""GET and POST below /admin/skills: list, read, check, save, compare, publish, roll back and withdraw skills."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from anyio import to_thread
from msgspec import Meta, Struct
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.chat.kept.feedback import Feedback
from server.config import Config, registered
from server.errors import ConfigError, InvalidRequest, NotFound
from server.metering.audit.chain import Event
from server.models.reload import skills_folder, warnings
from server.skills.catalogue import Skills
from server.skills.revisions.connection import LONGEST_REASON
from server.skills.revisions.store import Move, Revision
from server.skills.revisions.text import difference, parse
from server.skills.skill import Skill
from server.web.access.guard import role, who
from server.web.api.admin.skills.fields import fields
from server.web.api.admin.skills.moving import Mover, read_json, refusing
from server.web.http.requests import address
from server.web.http.responses import json_response

WEEK = 7 * 86_400
RATINGS = ("up", "down")
MOST_JUDGED = 30
"""Revisions, the latest, whose scores and gate are shown."""
Reason = Annotated[str, Meta(max_length=LONGEST_REASON)]


class Text(Struct, frozen=True, forbid_unknown_fields=True):
    """A text to check."""

    text: str


class Typed(Struct, frozen=True, forbid_unknown_fields=True):
    """A text to compare with the revision `old`."""

    text: str
    old: Annotated[int, Meta(ge=1)]


class Draft(Struct, frozen=True, forbid_unknown_fields=True):
    """A text to save; `after` is the number of the revision that it was made from, 0 for none."""

    text: str
    after: Annotated[int, Meta(ge=0)]
    reason: Reason = ""


class Choice(Struct, frozen=True, forbid_unknown_fields=True):
    """A revision to publish."""

    number: Annotated[int, Meta(ge=1)]
    reason: Reason = ""


class Why(Struct, frozen=True, forbid_unknown_fields=True):
    """The reason of a rollback or withdrawal."""

    reason: Reason = ""


class SkillsEndpoints:
    """The endpoints; without revisions they only show the files' skills."""

    def __init__(
        self,
        config: Config,
        skills: Skills,
        mover: Mover,
        feedback: Feedback,
    ) -> None:
        self._feedback = feedback
        self._config = config
        self._skills = skills
        self._mover = mover
        self._revisions = mover.revisions

    def routes(self) -> list[Route]:
        """The routes, on the admin listener."""
        one = "/admin/skills/{name}"
        return [
            Route("/admin/skills", self.list),
            Route("/admin/skills/fields", self.fields),
            Route(one, self.one),
            Route(f"{one}/diff", self.diff),
            Route(f"{one}/diff", self.diff_with, methods=["POST"]),
            Route(f"{one}/check", self.check, methods=["POST"]),
            Route(f"{one}/revisions", self.save, methods=["POST"]),
            Route(f"{one}/publish", self.publish, methods=["POST"]),
            Route(f"{one}/rollback", self.rollback, methods=["POST"]),
            Route(f"{one}/withdraw", self.withdraw, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """Every skill that is served, or has revisions; whether this page may change them, and the reader's role."""
        moves = await self._moves()
        served = {skill.name: skill for skill in self._skills}
        saved = await to_thread.run_sync(self._revisions.names) if self._revisions else []
        shown = [
            self._summary(name, served.get(name), moves.get(name, ())) for name in dict.fromkeys([*served, *saved])
        ]
        ratings = await to_thread.run_sync(self._ratings)
        listed = [{**one, "ratings": {rating: ratings[one["name"], rating] for rating in RATINGS}} for one in shown]
        reader = {"editing": self._config.skill_revisions, "role": role(request)}
        return json_response({"skills": listed, **reader}, no_store=True)

    def _ratings(self) -> Counter[tuple[str, str]]:
        """The ratings of the last seven days, by skill and rating; raises FeedbackUnavailable."""
        ratings: Counter[tuple[str, str]] = Counter()
        for (skill, _, rating), count in self._feedback.counts(time.time() - WEEK).items():
            ratings[skill, rating] += count
        return ratings

    async def fields(self, _: Request) -> Response:
        """The fields of a skill's file with their documentation."""
        return json_response({"fields": fields()}, no_store=True)

    async def one(self, request: Request) -> Response:
        """A skill's latest text, its revisions and moves; raises NotFound."""
        name = request.path_params["name"]
        moves = (await self._moves()).get(name, ())
        found = self._skills.get(name)
        revisions: Sequence[Revision] = ()
        if self._revisions is not None:
            revisions = await to_thread.run_sync(self._revisions.list, name)
        if found is None and not revisions:
            raise NotFound(f"There is no skill {name[:64]!r}.", param="name")
        text = await to_thread.run_sync(self._latest, name)
        return json_response(
            {
                **self._summary(name, found, moves),
                "text": text,
                "revisions": await to_thread.run_sync(self._judged, revisions),
                "moves": [asdict(move) for move in moves],
            },
            no_store=True,
        )

    async def diff(self, request: Request) -> Response:
        """The unified diff of two revisions: `old` and `new` are numbers."""
        name, query = request.path_params["name"], request.query_params
        numbers = [query.get(side, "") for side in ("old", "new")]
        if not all(number.isdigit() for number in numbers):
            raise InvalidRequest("Give the numbers of two revisions: `old` and `new`.", param="old")
        old, new = [await to_thread.run_sync(self._mover.editable().get, name, int(number)) for number in numbers]
        names = (f"{name}@{old.number}", f"{name}@{new.number}")
        return json_response({"diff": difference(old.text, new.text, names)}, no_store=True)

    async def diff_with(self, request: Request) -> Response:
        """The unified diff of a revision and a text that is not saved."""
        name, asked = request.path_params["name"], await read_json(request, Typed)
        old = await to_thread.run_sync(self._mover.editable().get, name, asked.old)
        names = (f"{name}@{old.number}", f"{name}, not saved")
        return json_response({"diff": difference(old.text, asked.text, names)}, no_store=True)

    async def check(self, request: Request) -> Response:
        """The mistake in a text, or its revision and warnings."""
        name = request.path_params["name"]
        asked = await read_json(request, Text)
        try:
            skill = await to_thread.run_sync(parse, asked.text, skills_folder(self._config), name)
        except ConfigError as error:
            return json_response({"problem": str(error)}, no_store=True)
        return json_response({"revision": skill.revision, "warnings": list(warnings(skill))}, no_store=True)

    async def save(self, request: Request) -> Response:
        """Save a text as the next revision; 400 for a mistake in it, 409 if somebody else saved meanwhile."""
        name, asked = request.path_params["name"], await read_json(request, Draft)
        revisions = self._mover.editable()

        def save() -> Revision:
            return revisions.save(name, asked.text, author=who(request), reason=asked.reason, after=asked.after)

        made = await refusing(save)
        await self._mover.record(
            Event(made.author, "skill.save", f"{name}@{made.number}", address(request), made.reason)
        )
        return json_response(asdict(made), 201, no_store=True)

    async def publish(self, request: Request) -> Response:
        """Publish a revision and serve it; if it cannot be served, the former one stays, and 400 says why."""
        name, asked = request.path_params["name"], await read_json(request, Choice)
        revisions = self._mover.editable()
        return await self._mover.move(
            request, lambda: revisions.publish(name, asked.number, author=who(request), reason=asked.reason)
        )

    async def rollback(self, request: Request) -> Response:
        """Serve again what was served before the last move."""
        name, asked = request.path_params["name"], await read_json(request, Why)
        revisions = self._mover.editable()
        return await self._mover.move(
            request, lambda: revisions.rollback(name, author=who(request), reason=asked.reason)
        )

    async def withdraw(self, request: Request) -> Response:
        """Serve no revision any more, but the skill's file, if there is one."""
        name, asked = request.path_params["name"], await read_json(request, Why)
        revisions = self._mover.editable()
        return await self._mover.move(
            request, lambda: revisions.withdraw(name, author=who(request), reason=asked.reason)
        )

    async def _moves(self) -> Mapping[str, Sequence[Move]]:
        """All moves by skill."""
        found: dict[str, list[Move]] = {}
        for move in await to_thread.run_sync(self._revisions.moves) if self._revisions else ():
            found.setdefault(move.skill, []).append(move)
        return found

    def _judged(self, revisions: Sequence[Revision]) -> Sequence[Mapping[str, Any]]:
        """The revisions, the latest with what they scored and what the gate says of them."""
        if self._revisions is None or not revisions:
            return []
        judge = self._revisions.judge(revisions[0].skill)
        shown = [{**asdict(one), "scores": {}, "gate": None} for one in revisions[:-MOST_JUDGED]]
        for one in revisions[-MOST_JUDGED:]:
            latest = self._revisions.evaluations.latest(one.skill, one.digest)
            scores = {
                task: {"means": made.means, "made": made.made, "model": made.model} for task, made in latest.items()
            }
            verdict = judge(self._revisions.get(one.skill, one.number))
            shown.append({**asdict(one), "scores": scores, "gate": msgspec.to_builtins(verdict)})
        return shown

    def _latest(self, name: str) -> str:
        """The text of the latest revision, else of the skill's file; empty if neither can be read."""
        if self._revisions is not None and (saved := self._revisions.list(name)):
            return self._revisions.get(name, saved[-1].number).text
        paths = (
            sorted(skills_folder(self._config).glob("[!.]*.toml"))
            if self._config.skills.is_dir()
            else [self._config.skills]
        )
        for path in paths:
            try:
                if Skill.read(path).name == name:
                    return path.read_text()
            except (OSError, ConfigError):
                continue
        return ""

    def _summary(self, name: str, skill: Skill | None, moves: Sequence[Move]) -> dict[str, Any]:
        """What the list shows of a skill; `skill` is None for one that is not served."""
        published = moves[-1].number if moves else 0
        return {
            "name": name,
            "title": (skill.title if skill else "") or name,
            "served": skill is not None,
            "published": published,
            "source": "revision" if published else "file" if skill else "draft",
            "revision": skill.revision if skill else "",
            "model": _named(skill.model or self._config.model) if skill else "",
            "encoder": skill.encoder if skill else "",
            "knowledge": _placed(skill.knowledge, skills_folder(self._config)) if skill else "",
            "origins": list(skill.origins) if skill else [],
        }


def _named(model: str) -> str:
    """A model as people name it: of the registry as it is, else by its directory."""
    return model if registered(model) else Path(model).name


def _placed(knowledge: str, skills: Path) -> str:
    """A directory of knowledge without the folder that the server or its skills lie in; others as they are."""
    place = Path(knowledge).absolute()
    folders = (Path.cwd(), skills.absolute().parent)
    inside = next((folder for folder in folders if place.is_relative_to(folder)), None)
    return str(place.relative_to(inside)) if knowledge and not registered(knowledge) and inside else knowledge
