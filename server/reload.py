"""Reads the skills again while the server runs: all of them change at once, or none and it says why."""

import logging
from collections.abc import Mapping, Sequence

from server.config import Config
from server.errors import ConfigError
from server.skill import EVERY_ORIGIN, Skill
from server.skills import Skills

logger = logging.getLogger(__name__)


def load_skills(config: Config) -> Sequence[Skill]:
    """The skills that a server of these settings can serve; raises ConfigError."""
    skills = Skills.read(config.skills)
    for skill in skills:
        if skill.model not in ("", config.model):
            raise ConfigError(
                f"{config.skills}: the skill {skill.name!r} wants the model {skill.model!r} at `$.model`; "
                f"this server has {config.model!r}: start another server for it"
            )
        for warning in warnings(skill):
            logger.warning("%s", warning)
    return skills


def warnings(skill: Skill) -> Sequence[str]:
    """What is allowed and yet seldom meant."""
    if EVERY_ORIGIN in skill.origins:
        return [f"the skill {skill.name!r} lets pages of every origin in, since its `origins` have `*`"]
    return []


def reload(config: Config, skills: Skills) -> Mapping[str, str]:
    """Let `skills` be what the files say now; returns name and revision of each, or raises ConfigError."""
    skills.replace(load_skills(config))
    return revisions(skills)


def revisions(skills: Skills) -> Mapping[str, str]:
    """Name and revision of each skill."""
    return {skill.name: skill.revision for skill in skills}


def reload_on_signal(config: Config, skills: Skills) -> None:
    """`reload`, with its result or its error in the log."""
    try:
        found = reload(config, skills)
    except ConfigError as error:
        logger.error("Nothing was reloaded: %s", error)
    else:
        logger.warning("Reloaded %s", ", ".join(f"{name} ({revision})" for name, revision in found.items()))
