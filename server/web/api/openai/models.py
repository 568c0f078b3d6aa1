"""GET /v1/models: the caller's skills and aliases; GET /v1/skills/{name}: a skill's texts and lineage; GET /version."""

from datetime import datetime
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.artifact.checkpoint.lineage import Lineage, address
from server.models.encoders import Encoders
from server.models.rollout import Rollout
from server.skills.catalogue import Caller, Skills
from server.skills.skill import Skill
from server.web.http.requests import bearer
from server.web.http.responses import json_response


class ModelEndpoints:
    """The endpoints for these skills; each is shown with the model that answers it now."""

    def __init__(self, skills: Skills, rollout: Rollout, encoders: Encoders) -> None:
        self._skills = skills
        self._rollout = rollout
        self._encoders = encoders

    async def list(self, request: Request) -> Response:
        """Every skill that the caller may use, and each of its aliases."""
        grants = self._skills.usable(self._caller(request))
        names = [(name, grant.skill) for grant in grants for name in (grant.skill.name, *grant.skill.aliases)]
        return json_response({"object": "list", "data": [self._model(name, skill) for name, skill in names]})

    async def one(self, request: Request) -> Response:
        """One skill, by name or alias."""
        name = request.path_params["name"]
        return json_response(self._model(name, self._granted(request)))

    async def skill(self, request: Request) -> Response:
        """A skill's name, title and greeting."""
        skill = self._granted(request)
        return json_response({"name": skill.name, "title": skill.title or skill.name, "greeting": skill.greeting})

    async def lineage(self, request: Request) -> Response:
        """How the model of a skill was made: its steps and, recursively, its parents; and who counts its tokens."""
        model = self._rollout.of(self._granted(request).model)
        return json_response({**summary(model.lineage), "usage_from": "backend" if model.engine.text else "ids"})

    async def version(self, request: Request) -> Response:
        """The server's version, for callers with a key."""
        self._caller(request)
        return json_response({"version": version("secateur")})

    def _granted(self, request: Request) -> Skill:
        """The skill that the path names; raises NotFound, or Forbidden if the caller may not use it."""
        return self._skills.authorise(request.path_params["name"], self._caller(request)).skill

    def _caller(self, request: Request) -> Caller:
        return self._skills.recognise(bearer(request.headers))

    def _model(self, name: str, skill: Skill) -> dict[str, Any]:
        """OpenAI's model object; `root` is the skill's name, and `max_model_len` the context in tokens, as in vLLM."""
        head = {"id": name, "object": "model", "owned_by": "secateur", "root": skill.name}
        if named := self._encoders.of(skill):
            shown = {"created": 0, "max_model_len": named.most, "artifact": named.name}
            return {**head, **shown, "dimensions": named.encoder.dimension}
        model = self._rollout.of(skill.model)
        return {
            **head,
            "created": timestamp(model.lineage.created),
            "max_model_len": model.engine.context,
            "artifact": model.name,
            "lineage": {"address": address(model.lineage), "url": f"/v1/skills/{skill.name}/lineage"},
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
        "perplexity_by_text": {text.name: text.perplexity for text in evaluation.others} if evaluation else {},
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
