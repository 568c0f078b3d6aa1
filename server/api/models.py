"""GET /v1/models: the skills the caller may use, each with what its model was made from; GET /v1/skills/{name}."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.api.requests import credentials
from server.checkpoint.lineage import Lineage
from server.engine.choice import Choice
from server.skills import Skills


class Models:
    """The endpoints, for these skills and this one artifact."""

    def __init__(self, skills: Skills, name: str, lineage: Lineage, choices: Sequence[Choice]) -> None:
        self._skills = skills
        self._created = timestamp(lineage.created)
        self._details = {
            "artifact": name,
            "lineage": summary(lineage),
            "runtime": [{"subject": c.subject, "kernel": c.kernel, "reason": c.reason} for c in choices],
        }

    async def list(self, request: Request) -> Response:
        """Every skill the caller may use."""
        grants = self._skills.usable(credentials(request))
        return reply({"object": "list", "data": [self._model(grant.skill.name) for grant in grants]})

    async def one(self, request: Request) -> Response:
        """One of them."""
        grant = self._skills.authorise(request.path_params["name"], credentials(request))
        return reply(self._model(grant.skill.name))

    async def skill(self, request: Request) -> Response:
        """What the widget shows before the first word."""
        skill = self._skills.authorise(request.path_params["name"], credentials(request)).skill
        return reply({"name": skill.name, "title": skill.title or skill.name, "greeting": skill.greeting})

    def _model(self, skill: str) -> dict[str, Any]:
        return {"id": skill, "object": "model", "created": self._created, "owned_by": "secateur", **self._details}


def summary(lineage: Lineage) -> dict[str, Any]:
    """The lineage without its per-layer figures and file digests."""
    evaluation = lineage.evaluation
    return {
        "created": lineage.created,
        "base": lineage.base,
        "steps": [{"technique": step.technique, "options": step.options} for step in lineage.steps],
        "calibration": lineage.calibration,
        "perplexity": evaluation.perplexity if evaluation else None,
        "bytes": evaluation.bytes if evaluation else None,
    }


def timestamp(created: str) -> int:
    """Unix seconds of an ISO 8601 time; 0 if it is none."""
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return 0


def reply(value: dict[str, Any]) -> Response:
    """JSON."""
    return Response(msgspec.json.encode(value), media_type="application/json")
