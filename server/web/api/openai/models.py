"""GET /v1/models: the caller's skills, each with its model's lineage; GET /v1/skills/{name}: a skill's texts."""

from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.artifact.checkpoint.lineage import Lineage, address
from server.models.rollout import Model, Rollout
from server.skills.catalogue import Caller, Skills
from server.skills.skill import Skill
from server.web.http.requests import bearer
from server.web.http.responses import json_response


class ModelEndpoints:
    """The endpoints for these skills; each is shown with the model that answers it now."""

    def __init__(self, skills: Skills, rollout: Rollout) -> None:
        self._skills = skills
        self._rollout = rollout

    async def list(self, request: Request) -> Response:
        """Every skill that the caller may use."""
        grants = self._skills.usable(self._caller(request))
        return json_response({"object": "list", "data": [self._model(grant.skill) for grant in grants]})

    async def one(self, request: Request) -> Response:
        """One skill."""
        grant = self._skills.authorise(request.path_params["name"], self._caller(request))
        return json_response(self._model(grant.skill))

    async def skill(self, request: Request) -> Response:
        """A skill's name, title and greeting."""
        skill = self._skills.authorise(request.path_params["name"], self._caller(request)).skill
        return json_response({"name": skill.name, "title": skill.title or skill.name, "greeting": skill.greeting})

    def _caller(self, request: Request) -> Caller:
        return self._skills.recognise(bearer(request.headers))

    def _model(self, skill: Skill) -> dict[str, Any]:
        """OpenAI's model object, with the skill's name as its id."""
        model = self._rollout.of(skill.model)
        return {"id": skill.name, "object": "model", "owned_by": "secateur", **details(model)}


def details(model: Model) -> dict[str, Any]:
    """A model's lineage and automatic choices, and when it was made."""
    return {
        "created": timestamp(model.lineage.created),
        "artifact": model.name,
        "lineage": summary(model.lineage),
        "runtime": [{"subject": c.subject, "kernel": c.value, "reason": c.reason} for c in model.choices],
    }


def summary(lineage: Lineage) -> dict[str, Any]:
    """The lineage and, recursively, its parents; without per-layer figures and file digests."""
    evaluation = lineage.evaluation
    return {
        "address": address(lineage),
        "created": lineage.created,
        "base": lineage.base,
        "steps": [
            {
                "technique": step.technique,
                "options": step.options,
                "parameters": step.parameters,
                "parent_digest": step.parent_digest,
                "digest": step.digest,
            }
            for step in lineage.steps
        ],
        "calibration": lineage.calibration,
        "perplexity": evaluation.perplexity if evaluation else None,
        "bytes": evaluation.bytes if evaluation else None,
        "gates": evaluation.gates if evaluation else (),
        "parent": summary(lineage.parent) if lineage.parent else None,
    }


def timestamp(created: str) -> int:
    """Unix seconds of an ISO 8601 time, or 0 if it is malformed."""
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return 0
