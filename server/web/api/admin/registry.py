"""GET /admin/registry: which model answers each skill now, and every version of the models that the registry has."""

from collections.abc import Sequence
from typing import Any

import msgspec
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from server.artifact.checkpoint.lineage import address
from server.artifact.registry.results import checked
from server.artifact.registry.rules import judged
from server.artifact.registry.store import Registry
from server.artifact.signing.keys import Signers
from server.config import Config, registered
from server.models.rollout import Rollout
from server.skills.catalogue import Skills
from server.web.http.responses import json_response


class RegistryEndpoint:
    """The endpoint, for the registry of `config`, which it only reads."""

    def __init__(self, config: Config, skills: Skills, rollout: Rollout) -> None:
        self._url = config.registry
        self._signers = config.signers
        self._skills = skills
        self._rollout = rollout

    async def get(self, _: Request) -> Response:
        """`answering` and `versions`; raises RegistryError if the registry cannot be read."""
        references = self._rollout.references(skill.model for skill in self._skills)
        followed = [name for name in map(registered, references) if name is not None]
        versions = await to_thread.run_sync(self._versions, sorted({name.split("@")[0] for name in followed}))
        answering = [self._answering(reference) for reference in references]
        return json_response({"answering": answering, "versions": versions}, no_store=True)

    def _answering(self, reference: str) -> dict[str, Any]:
        found = self._rollout.find(reference)
        skills = [skill.name for skill in self._skills if self._rollout.reference(skill.model) == reference]
        model = found.model if found else None
        return {
            "reference": reference,
            "skills": skills,
            "model": model and model.name,
            "address": model and address(model.lineage),
        }

    def _versions(self, models: Sequence[str]) -> list[dict[str, Any]]:
        """Every version of `models`, with its aliases, gates, and results with their signatures checked."""
        if not models:
            return []
        found, signers = [], Signers.read(self._signers) if self._signers else None
        with Registry.open(self._url) as registry:
            for model in models:
                aliases = registry.aliases(model)
                for number in registry.numbers(model):
                    version = registry.resolve(f"{model}@{number}")
                    names = sorted(alias for alias, at in aliases.items() if at == number)
                    shown = {"name": version.name, "address": version.address, "aliases": names}
                    results = [msgspec.structs.asdict(one) for one in checked(version, signers)]
                    found.append({**shown, "gates": judged(version), "results": results, "added": version.added})
        return found
