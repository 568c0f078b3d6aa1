"""Reads the skills again while the server runs: all of them change at once, or none and it says why."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from anyio import to_thread

from server.config import Config, registered
from server.errors import ConfigError, reason
from server.models.loading import Loader, check_names
from server.models.rollout import Answering, Model, Rollout, Successors
from server.models.suitability import suits
from server.skills.catalogue import Skills
from server.skills.skill import EVERY_ORIGIN, Skill

logger = logging.getLogger(__name__)


def load_skills(config: Config) -> Sequence[Skill]:
    """The skills that a server of these settings can serve; raises ConfigError."""
    skills = Skills.read(config.skills)
    for skill in skills:
        if registered(skill.model) is not None and config.signers is None:
            raise ConfigError(
                f"{config.skills}: the skill {skill.name!r} wants {skill.model!r} at `$.model`, and a model of the "
                "registry must be signed: name the file of `signers` in the server's file"
            )
        for warning in warnings(skill):
            logger.warning("%s", warning)
    return skills


def check_prompts(skills: Iterable[Skill], model: Callable[[str], Model]) -> None:
    """Raise ConfigError where a skill's prompt does not suit the model that answers it; log what is seldom meant."""
    for skill in skills:
        for warning in suits(skill, model(skill.model)):
            logger.warning("%s", warning)


def warnings(skill: Skill) -> Sequence[str]:
    """What is allowed and yet seldom meant."""
    if EVERY_ORIGIN in skill.origins:
        return [f"the skill {skill.name!r} lets pages of every origin in, since its `origins` have `*`"]
    return []


class Reloader:
    """Lets `skills` be what the files say now, with the models that they name; belongs to the asyncio loop."""

    def __init__(self, config: Config, skills: Skills, rollout: Rollout, loader: Loader) -> None:
        self._config = config
        self._skills = skills
        self._rollout = rollout
        self._loader = loader
        self._turn = asyncio.Lock()

    async def reload(self) -> Mapping[str, str]:
        """Name and revision of each skill; models are loaded before anything changes. Raises SecateurError."""
        async with self._turn:
            skills = await to_thread.run_sync(load_skills, self._config)
            more = await to_thread.run_sync(self._load, skills)
            await to_thread.run_sync(check_prompts, skills, partial(self._model, more))
            self._rollout.arrange([skill.model for skill in skills], more)
            self._skills.replace(skills)  # nothing waits in between: whoever finds a skill finds its model
            await self.began()
        return {skill.name: skill.revision for skill in skills}

    async def on_signal(self) -> None:
        """`reload`, with its result or its error in the log."""
        try:
            found = await self.reload()
        except Exception as error:  # whatever it was, what was served before goes on
            logger.error("Nothing was reloaded: %s", reason(error))
        else:
            logger.warning("Reloaded %s", ", ".join(f"{name} ({revision})" for name, revision in found.items()))

    async def began(self) -> None:
        """Let the registry know which versions answer which skills."""
        for reference, successors in self._rollout.successors.items():
            await self._begin(reference, successors)

    async def follow(self, seconds: float) -> None:
        """Ask again and again, at this interval, whether another version is to answer, and let it."""
        await self.began()
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._follow()
            except Exception as error:  # nothing may end the following
                logger.error("Not followed: %s; what was served before goes on", reason(error))

    async def _follow(self) -> None:
        """Ask once of each model that may be followed by another."""
        for reference, successors in self._rollout.successors.items():
            model = await to_thread.run_sync(successors.next)
            if model is None:
                continue
            async with self._turn:  # a reload meanwhile would bring skills that this model was not asked about
                if not await to_thread.run_sync(self._suits, reference, model):
                    continue
                if self._rollout.replace(reference, successors, model):
                    await self._begin(reference, successors)

    def _model(self, more: Mapping[str, Answering], wanted: str) -> Model:
        """The model that is to answer such skills, perhaps a new one."""
        reference = self._rollout.reference(wanted)
        found = more.get(reference) or self._rollout.find(reference)
        assert found is not None
        return found.model

    async def _begin(self, reference: str, successors: Successors) -> None:
        answering = self._rollout.find(reference)
        assert answering is not None
        skills = [skill.name for skill in self._answered(reference)]
        await to_thread.run_sync(successors.began, skills, answering.model.name)

    def _answered(self, reference: str) -> list[Skill]:
        return [skill for skill in self._skills if self._rollout.reference(skill.model) == reference]

    def _suits(self, reference: str, model: Model) -> bool:
        """Whether a model can answer the skills of the one that it is to follow; where not, the log says why."""
        try:
            check_prompts(self._answered(reference), lambda _: model)
        except ConfigError as error:
            logger.error("%s cannot be served: %s; what was served before goes on", model.name, error)
            return False
        return True

    def _load(self, skills: Sequence[Skill]) -> Mapping[str, Answering]:
        """The models that skills name and that do not answer yet."""
        wanted = self._rollout.references(skill.model for skill in skills)
        known = {name: found.model.name for name in wanted if (found := self._rollout.find(name))}
        opened = {name: self._loader.open(name) for name in wanted if name not in known}
        check_names({**known, **{name: found.name for name, found in opened.items()}})
        return {name: self._loader.load(found) for name, found in opened.items()}
