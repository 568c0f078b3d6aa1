"""Splits the visitors' conversations of a skill between its published prompt and a rival."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from server.errors import ConfigError
from server.skills.revisions.trials import Experiment
from server.skills.skill import Skill

EQUAL = (
    "aliases", "origins", "site_keys", "keys", "identity", "tokens_per_minute", "tokens_per_day", "tokens_per_month",
    "requests_per_minute", "concurrent_replies", "visitor_requests_per_minute", "address_requests_per_minute",
    "sessions_per_minute", "keep_questions", "questions_days", "feedback_days",
)  # fmt: skip
"""Fields that both must have in common: access and limits belong to the skill."""


class Running(Experiment, frozen=True, kw_only=True):
    """An experiment whose rival was read."""

    rival: Skill
    numbers: tuple[int, int] = (0, 0)
    """The published revision and the rival; 0 for files."""
    since: float = 0.0
    """When it was started, in seconds since 1970; 0 if only the rival's first reply tells."""
    digest: str = ""
    """The rival's revision, which is a hash of its whole text."""


def running(skill: Skill) -> Running | None:
    """The experiment of a skill that is served, or None."""
    return skill.experiment if isinstance(skill.experiment, Running) else None


def answering(skill: Skill, conversation: str) -> Skill:
    """`skill` or its rival, whichever answers this conversation: always the same one as long as both are."""
    experiment = running(skill)
    if experiment is None:
        return skill
    seed = f"{skill.name} {experiment.digest} {conversation}"
    place = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) / 2**64
    return experiment.rival if place < experiment.share else skill


def with_rivals(skills: Iterable[Skill]) -> list[Skill]:
    """The skills and the rivals of their experiments."""
    found = []
    for skill in skills:
        found += [skill, experiment.rival] if (experiment := running(skill)) else [skill]
    return found


def split(where: str, skill: Skill, experiment: Running) -> Skill:
    """`skill` with its experiment; raises ConfigError, which begins with `where`, if the two cannot be compared."""
    rival = experiment.rival
    if rival.revision == skill.revision:
        raise ConfigError(f"{where}: both answer alike, by revision {skill.revision}: an experiment needs two prompts")
    if skill.encoder or rival.encoder:
        raise ConfigError(f"{where}: a skill with `encoder` answers nobody, so there is nothing to compare")
    for field in EQUAL:
        if getattr(rival, field) != getattr(skill, field):
            raise ConfigError(
                f"{where}: `{field}` differs between the two: who may use a skill, and its limits, must be the same in "
                "an experiment"
            )
    return replace(skill, experiment=replace(experiment, digest=rival.revision))


def from_file(path: Path, skill: Skill) -> Skill:
    """The skill of the file `path`, with the rival that its `[experiment]` names; raises ConfigError."""
    if skill.experiment is None:
        return skill
    found = path.parent / skill.experiment.file
    if not found.resolve().is_relative_to(path.parent.resolve()) or found.resolve().parent == path.parent.resolve():
        raise ConfigError(
            f"{path}: {skill.experiment.file!r} at `$.experiment.file` must lie in a folder below {path.parent}, where "
            "it is no skill of its own"
        )
    rival = Skill.read(found)
    if rival.name != skill.name:
        raise ConfigError(f"{found}: the name is {rival.name!r} at `$.name`; a rival has the skill's, {skill.name!r}")
    made = Running(file=skill.experiment.file, share=skill.experiment.share, rival=replace(rival, experiment=None))
    return split(str(path), skill, made)
