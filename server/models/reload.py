"""Reloads skills and models while the server runs: all change at once, or none does and the error says why."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

from anyio import to_thread

from server.artifact.checkpoint.lineage import address
from server.config import Config, registered
from server.errors import ConfigError, SecateurError, reason
from server.metering.audit.chain import Event
from server.models.loading import Loader, Opened, check_names
from server.models.rollout import CurrentModel, Model, Rollout, Successors
from server.models.shelf import Shelf
from server.models.suitability import suitability_warnings
from server.skills.catalogue import Skills
from server.skills.revisions.experiments import Trial
from server.skills.revisions.splitting import with_rivals
from server.skills.revisions.store import Move, Revisions
from server.skills.skill import EVERY_ORIGIN, Skill

logger = logging.getLogger(__name__)


def load_skills(config: Config, revisions: Revisions | None = None) -> Sequence[Skill]:
    """Read the configured skills, logging warnings; `revisions` are opened unless given. Raises ConfigError."""
    skills = configured(config, revisions)
    for skill in with_rivals(skills):
        if registered(skill.model) is not None and config.signers is None:
            raise ConfigError(
                f"{config.skills}: the skill {skill.name!r} wants {skill.model!r} at `$.model`, and a model of the "
                "registry must be signed: name the file of `signers` in the server's file"
            )
        for warning in warnings(skill):
            logger.warning("%s", warning)
        if skill.encoder and config.signers is not None:
            logger.warning("the encoder of the skill %r is not verified: `signers` sign models", skill.name)
    return skills


def configured(config: Config, revisions: Revisions | None = None) -> Sequence[Skill]:
    """The skills of the files, those with a published revision replaced by it, and the skills of revisions alone."""
    if config.skill_revisions == "off":
        return Skills.read(config.skills)
    with nullcontext(revisions) if revisions else closing(open_revisions(config)) as opened:
        published = {skill.name: skill for skill in opened.published()}
    files = Skills.read(config.skills) if config.skills.exists() or not published else []
    skills = [published.pop(skill.name, skill) for skill in files]
    return Skills.distinct([*skills, *published.values()])


def open_revisions(config: Config) -> Revisions:
    """The database of revisions; files of keys that they name are in the folder of the skills' files."""
    return Revisions(config.skills_at, skills_folder(config))


def skills_folder(config: Config) -> Path:
    """The folder of the skills' files."""
    return config.skills if config.skills.is_dir() else config.skills.parent


def move_event(move: Move, address: str = "") -> Event:
    """The audit log's entry of a move, asked for from an `address`."""
    return Event(move.author, f"skill.{move.action}", f"{move.skill}@{move.number}", address, move.reason)


def trial_event(trial: Trial, address: str = "") -> Event:
    """The audit log's entry of an experiment's start or stop, asked for from an `address`."""
    what = f"{trial.skill}@{trial.number} and @{trial.rival} at {trial.share:g}"
    return Event(trial.author, f"skill.experiment.{trial.action}", what, address, trial.reason)


def check_prompts(skills: Iterable[Skill], model: Callable[[str], Model]) -> None:
    """Raise ConfigError for a skill that its model cannot answer; log warnings. `model` finds a setting's model."""
    for skill in with_rivals(skills):
        for warning in suitability_warnings(skill, model(skill.model)):
            logger.warning("%s", warning)


def warnings(skill: Skill) -> Iterator[str]:
    """Warnings about settings that are allowed but rarely intended."""
    if EVERY_ORIGIN in skill.origins:
        yield f"the skill {skill.name!r} allows pages of every origin: its `origins` include `*`"
    day, month = skill.tokens_per_day, skill.tokens_per_month
    if day is not None and month is not None and day > month:
        yield (
            f"the skill {skill.name!r} allows {day} tokens a day and only {month} a month: "
            "`tokens_per_day` above `tokens_per_month` limits nothing"
        )


def refused_model(name: str, why: str) -> Event:
    """The audit log's event of a model, knowledge or version of them that was not loaded."""
    return Event("server", "model.refused", name, result=why)


class Loaded(NamedTuple):
    """What skills answer with now, and what loads more."""

    rollout: Rollout
    loader: Loader
    shelf: Shelf


class Reloader:
    """Replaces `skills`, and the models and knowledge that they name, while requests go on.

    Belongs to the asyncio loop.

    `record` receives each change for the audit log.
    """

    def __init__(
        self,
        config: Config,
        skills: Skills,
        loaded: Loaded,
        record: Callable[[Event], object] = lambda event: None,
        revisions: Revisions | None = None,
    ) -> None:
        """`revisions` are followed: what another process publishes is served within the interval of `follow`."""
        self._config = config
        self._skills = skills
        self._rollout, self._loader, self._shelf = loaded
        self._record = record
        self._revisions = revisions
        self._stamp = revisions.stamp() if revisions else 0
        self._turn = asyncio.Lock()

    async def reload(self) -> Mapping[str, str]:
        """Read skills and load new models, then switch; returns each skill's revision by name. Raises SecateurError."""
        async with self._turn:
            self._stamp = await to_thread.run_sync(self._revisions.stamp) if self._revisions else 0
            skills = await to_thread.run_sync(load_skills, self._config, self._revisions)
            answering = with_rivals(skills)
            new = await to_thread.run_sync(self._load, answering)
            encoders = await to_thread.run_sync(self._loader.encoders.load, skills)
            await to_thread.run_sync(check_prompts, skills, partial(self._model, new))
            knowledge = await to_thread.run_sync(self._shelf.load, answering)
            self._rollout.arrange([skill.model for skill in answering], new)
            self._loader.encoders.arrange(skills, encoders)
            self._shelf.arrange(answering, knowledge)
            old = {skill.name: skill.revision for skill in self._skills}
            self._skills.replace(skills)  # no await in between: a request that finds a skill finds its model
            await self.began()
        new_revisions = {skill.name: skill.revision for skill in skills}
        self._record_changes(old, new_revisions)
        return new_revisions

    async def on_signal(self) -> None:
        """`reload`, logging its result or error."""
        try:
            found = await self.reload()
        except Exception as error:  # whatever failed, the old skills stay
            logger.error("Nothing was reloaded: %s", reason(error))
            self._record(Event("SIGHUP", "reload", result="refused"))
        else:
            self._record(Event("SIGHUP", "reload", result="done"))
            logger.warning("Reloaded %s", ", ".join(f"{name} ({revision})" for name, revision in found.items()))

    async def began(self) -> None:
        """Record in the registry which versions answer which skills."""
        for reference, successors in self._rollout.successors.items():
            await self._begin(reference, successors)
        for reference, current in self._shelf.current.items():
            await to_thread.run_sync(current.began, self._grounded(reference))

    async def follow(self, seconds: float) -> None:
        """Look for new versions at this interval and switch to them; never returns."""
        await self.began()
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._follow()
                await self._follow_knowledge()
                await self._follow_revisions()
            except Exception as error:  # following must go on
                logger.error("Following failed: %s; the old versions stay", reason(error))

    async def _follow(self) -> None:
        """Look once for a new version of each followed model."""
        for reference, successors in self._rollout.successors.items():
            model = await to_thread.run_sync(successors.next)
            if successors.refusal is not None:
                self._record(refused_model(*successors.refusal))
            if model is None:
                continue
            async with self._turn:  # a concurrent reload could bring skills that were not checked
                if not await to_thread.run_sync(self._can_answer, reference, model):
                    continue
                old = self._rollout.find(reference)
                if self._rollout.replace(reference, successors, model):
                    result = f"{old.model.name if old else 'none'} -> {model.name} {address(model.lineage)}"
                    self._record(Event("server", "model.promoted", reference, result=result))
                    await self._begin(reference, successors)

    async def _follow_knowledge(self) -> None:
        """Look once for a new version of each followed knowledge."""
        for reference, current in self._shelf.current.items():
            old = current.name
            if await to_thread.run_sync(current.refresh):
                self._record(Event("server", "knowledge.promoted", reference, result=f"{old} -> {current.name}"))
                await to_thread.run_sync(current.began, self._grounded(reference))
            elif current.refusal is not None:
                self._record(refused_model(*current.refusal))

    async def _follow_revisions(self) -> None:
        """Reload once if a revision was published, here or by another replica; one that cannot be served is logged."""
        if self._revisions is not None and await to_thread.run_sync(self._revisions.stamp) != self._stamp:
            await self.reload()

    def _grounded(self, reference: str) -> list[str]:
        """The names of the skills that answer from the knowledge of `reference`."""
        return sorted({skill.name for skill in with_rivals(self._skills) if skill.knowledge == reference})

    def _record_changes(self, old: Mapping[str, str], new: Mapping[str, str]) -> None:
        """Record each skill whose revision changed."""
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                result = f"{old.get(name, 'none')} -> {new.get(name, 'none')}"
                self._record(Event("server", "skill.changed", name, result=result))

    def _model(self, new: Mapping[str, CurrentModel], wanted: str) -> Model:
        """The model for a skill's `model` setting: a new one, or the current one."""
        reference = self._rollout.reference(wanted)
        found = new.get(reference) or self._rollout.find(reference)
        assert found is not None
        return found.model

    async def _begin(self, reference: str, successors: Successors) -> None:
        current = self._rollout.find(reference)
        assert current is not None
        skills = sorted({skill.name for skill in self._answered(reference)})
        await to_thread.run_sync(successors.began, skills, current.model.name)

    def _answered(self, reference: str) -> list[Skill]:
        return [skill for skill in with_rivals(self._skills) if self._rollout.reference(skill.model) == reference]

    def _can_answer(self, reference: str, model: Model) -> bool:
        """Whether a new model can answer the skills of the reference; logs why not."""
        try:
            check_prompts(self._answered(reference), lambda _: model)
        except ConfigError as error:
            logger.error("%s cannot be served: %s; the old version stays", model.name, error)
            self._record(refused_model(model.name, reason(error)))
            return False
        return True

    def _open(self, name: str) -> Opened:
        try:
            return self._loader.open(name)
        except SecateurError as error:
            self._record(refused_model(name, reason(error)))
            raise

    def _load(self, skills: Sequence[Skill]) -> Mapping[str, CurrentModel]:
        """Load the models that skills name and that are not loaded yet, by reference."""
        wanted = self._rollout.references(skill.model for skill in skills)
        known = {name: found.model.name for name in wanted if (found := self._rollout.find(name))}
        opened = {name: self._open(name) for name in wanted if name not in known}
        check_names({**known, **{name: found.name for name, found in opened.items()}})
        return {name: self._loader.load(found) for name, found in opened.items()}
