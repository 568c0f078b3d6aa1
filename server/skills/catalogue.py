"""Skills: what callers ask for as `model`, who may ask, and the decision for one request.

Denied by default: a skill that no key opens can be used by no program, and one without origins by no page.
"""

import hmac
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from msgspec import Struct

from server.errors import ConfigError, Forbidden, NotFound, Unauthorized
from server.skills.api_keys import KEY_ID, Keys, digest
from server.skills.skill import Skill

__all__ = ["Credentials", "Grant", "Skill", "Skills", "digest"]


class Credentials(Struct, frozen=True):
    """What a request shows of its sender; None where it shows nothing."""

    key: str | None = None
    origin: str | None = None


class Grant(Struct, frozen=True):
    """A skill that the caller may use, since it holds a key; a page's visitors have sessions instead."""

    skill: Skill
    key_id: str = ""
    """Tells keys apart in the ledger: the first digits of the key's SHA-256. Empty without a key."""


class Skills:
    """All configured skills, by name, and the keys that open them; `replace` changes all of them at once."""

    def __init__(self, skills: Iterable[Skill], keys: Keys | None = None) -> None:
        self._skills = {skill.name: skill for skill in skills}
        self._keys = keys or Keys(None)

    @classmethod
    def load(cls, path: Path, keys: Keys | None = None) -> Self:
        """Read one TOML file or every one in a folder; raises ConfigError naming the file and the field."""
        return cls(cls.read(path), keys)

    @staticmethod
    def read(path: Path) -> list[Skill]:
        """The skills of a file or folder, as `load` reads them; ConfigError has a line for each file that is wrong."""
        files = sorted(path.glob("[!.]*.toml")) if path.is_dir() else [path]  # editors keep notes of theirs under `.`
        if not files:
            raise ConfigError(f"{path} has no skill: put one TOML file for each skill there")
        found: dict[str, Path] = {}
        skills, problems = [], []
        for file in files:
            try:
                skill = Skill.read(file)
            except ConfigError as error:
                problems.append(str(error))
                continue
            if skill.name in found:
                problems.append(f"{file}: the name {skill.name!r} at `$.name` is taken by {found[skill.name]}")
            found[skill.name] = file
            skills.append(skill)
        if problems:
            raise ConfigError("\n".join(problems))
        return skills

    def replace(self, skills: Iterable[Skill]) -> None:
        """Let these be the skills from the next request on; replies under way keep theirs."""
        self._skills = {skill.name: skill for skill in skills}

    def __iter__(self) -> Iterator[Skill]:
        return iter(self._skills.values())

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

    def recognise(self, credentials: Credentials) -> None:
        """Raise Unauthorized unless the key opens something; asked before a request may cost anything."""
        shown = credentials.key
        if shown is None:
            raise Unauthorized("Send an API key: `Authorization: Bearer ...`.", code="missing_api_key")
        if not self._keys.find(shown) and not sum(_holds(skill, shown) for skill in self):
            raise Unauthorized("The API key is not known.", code="invalid_api_key")

    def authorise(self, name: str, credentials: Credentials) -> Grant:
        """The skill `name` for this caller; raises Unauthorized (who?), NotFound or Forbidden (not you).

        Who has no key learns nothing of which skills there are.
        """
        self.recognise(credentials)
        skill = self._skills.get(name)
        if skill is None:
            raise NotFound(f"There is no skill {name[:64]!r}.", param="model", code="model_not_found")
        if grant := self._grant(skill, credentials):
            return grant
        raise Forbidden(f"This API key may not use the skill {name!r}.", code="key_not_allowed")

    def usable(self, credentials: Credentials) -> list[Grant]:
        """Every skill that the caller may use; raises Unauthorized or Forbidden if there is none."""
        self.recognise(credentials)
        grants = [grant for skill in self._skills.values() if (grant := self._grant(skill, credentials))]
        if not grants:
            raise Forbidden("This API key may not use any skill.", code="key_not_allowed")
        return grants

    def _grant(self, skill: Skill, credentials: Credentials) -> Grant | None:
        shown = credentials.key
        if shown is not None:
            key = self._keys.find(shown)
            if _holds(skill, shown) or (key is not None and skill.name in key.skills):
                return Grant(skill, key_id=digest(shown)[:KEY_ID])
        return None


def _holds(skill: Skill, key: str) -> bool:
    """Compares with every key of the skill, so that the time taken does not tell which one was close."""
    shown = digest(key)
    return sum(hmac.compare_digest(shown, known) for known in skill.keys) > 0
