"""Skills: what callers ask for as `model`, who may ask, and the decision for one request.

Denied by default: a skill that names neither a key nor an origin can be used by nobody.
"""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from msgspec import Struct

from server.errors import ConfigError, Forbidden, NotFound, Unauthorized
from server.skill import Skill

__all__ = ["Credentials", "Grant", "Skill", "Skills", "digest"]


class Credentials(Struct, frozen=True):
    """What a request shows of its sender; None where it shows nothing."""

    key: str | None = None
    origin: str | None = None


class Grant(Struct, frozen=True):
    """A skill that the caller may use; `trusted` callers hold a key, the others are a web page's visitors."""

    skill: Skill
    trusted: bool


class Skills:
    """All configured skills, by name."""

    def __init__(self, skills: Iterable[Skill]) -> None:
        self._skills = {skill.name: skill for skill in skills}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read one TOML file or every one in a folder; raises ConfigError naming the file and the field."""
        files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{path} has no skill: put one TOML file for each skill there")
        found: dict[str, Path] = {}
        skills = []
        for file in files:
            skill = Skill.read(file)
            if skill.name in found:
                raise ConfigError(f"{file}: the name {skill.name!r} at `$.name` is taken by {found[skill.name]}")
            found[skill.name] = file
            skills.append(skill)
        return cls(skills)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of their files."""
        return tuple(self._skills)

    def get(self, name: str) -> Skill | None:
        """The skill of this name, as it is now."""
        return self._skills.get(name)

    def knows(self, origin: str) -> bool:
        """Whether any skill may be embedded in pages of `origin`."""
        return any(skill.admits(origin) for skill in self._skills.values())

    def authorise(self, name: str, credentials: Credentials) -> Grant:
        """The skill `name` for this caller; raises NotFound, Unauthorized (who?) or Forbidden (not you)."""
        skill = self._skills.get(name)
        if skill is None:
            raise NotFound(f"There is no skill {name[:64]!r}.", param="model", code="model_not_found")
        if grant := _grant(skill, credentials):
            return grant
        raise self._refusal(credentials, f"the skill {name!r}")

    def usable(self, credentials: Credentials) -> list[Grant]:
        """Every skill that the caller may use; raises Unauthorized or Forbidden if there is none."""
        grants = [grant for skill in self._skills.values() if (grant := _grant(skill, credentials))]
        if not grants:
            raise self._refusal(credentials, "any skill")
        return grants

    def _refusal(self, credentials: Credentials, what: str) -> Unauthorized | Forbidden:
        if credentials.key is not None:
            if sum(_holds(skill, credentials.key) for skill in self._skills.values()):
                return Forbidden(f"This API key may not use {what}.", code="key_not_allowed")
            return Unauthorized("The API key is not known.", code="invalid_api_key")
        if credentials.origin is not None:
            return Forbidden(f"Pages of this origin may not use {what}.", code="origin_not_allowed")
        return Unauthorized("Send an API key: `Authorization: Bearer ...`.", code="missing_api_key")


def digest(key: str) -> str:
    """What a skill's `keys` holds for an API key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def _grant(skill: Skill, credentials: Credentials) -> Grant | None:
    if credentials.key is not None and _holds(skill, credentials.key):
        return Grant(skill, trusted=True)
    if credentials.origin is not None and credentials.origin in skill.origins:
        return Grant(skill, trusted=False)
    return None


def _holds(skill: Skill, key: str) -> bool:
    """Compares with every key of the skill, so that the time taken does not tell which one was close."""
    shown = digest(key)
    return sum(hmac.compare_digest(shown, known) for known in skill.keys) > 0
