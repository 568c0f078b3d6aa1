"""The configured skills by name, and which of them an API key opens.

Denied by default: without keys no program can use a skill, without origins no page can embed it.
"""

import hmac
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from server.errors import ConfigError, Forbidden, NotFound, Unauthorized
from server.skills.api_keys import KEY_ID, Keys, digest
from server.skills.key_limits import Allowance
from server.skills.revisions.splitting import from_file
from server.skills.skill import Skill

MOST_NAMED = 10


class Caller(Struct, frozen=True):
    """A program with a known API key."""

    key_id: str
    """Identifies the key in the ledger: the first digits of its SHA-256."""
    skills: frozenset[str]
    """Names of the skills that the key opens."""
    groups: frozenset[str] = frozenset()
    """The key's groups: what it may see of a knowledge beside what everyone may."""


class Grant(Struct, frozen=True):
    """A skill that the caller may use."""

    skill: Skill
    key_id: str
    groups: frozenset[str] = frozenset()


class Skills:
    """All configured skills by name and alias, and the file of keys; `replace` swaps all skills at once."""

    def __init__(self, skills: Iterable[Skill], keys: Keys | None = None) -> None:
        self._keys = keys or Keys(None)
        self.replace(skills)

    @staticmethod
    def read(path: Path) -> list[Skill]:
        """The skills of a TOML file or of a folder, in the order of file names.

        Raises ConfigError with one line for each file that is wrong.
        """
        files = sorted(path.glob("[!.]*.toml")) if path.is_dir() else [path]  # editors keep lock files under `.`
        if not files:
            raise ConfigError(f"{path} has no skill: put one TOML file for each skill there")
        found: dict[str, Path] = {}
        skills, problems = [], []
        for file in files:
            try:
                skill = from_file(file, Skill.read(file))
            except ConfigError as error:
                problems.append(str(error))
                continue
            for field, name in names_of(skill):
                if name in found:
                    problems.append(f"{file}: the name {name!r} at `$.{field}` is taken by {found[name]}")
                found[name] = file
            skills.append(skill)
        if problems:
            raise ConfigError("\n".join(problems))
        return skills

    @staticmethod
    def distinct(skills: Sequence[Skill]) -> Sequence[Skill]:
        """`skills`; raises ConfigError if two have a name or alias in common."""
        owners: dict[str, str] = {}
        for skill in skills:
            for field, name in names_of(skill):
                if name in owners:
                    raise ConfigError(f"{skill.name}: the name {name!r} at `$.{field}` is taken by {owners[name]}")
                owners[name] = skill.name
        return skills

    def replace(self, skills: Iterable[Skill]) -> None:
        """Serve these skills from the next request on; replies under way keep theirs."""
        self._skills = {skill.name: skill for skill in skills}
        self._aliases = {alias: skill for skill in self._skills.values() for alias in skill.aliases}

    def __iter__(self) -> Iterator[Skill]:
        return iter(self._skills.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Skill names, in the order of their files."""
        return tuple(self._skills)

    def get(self, name: str) -> Skill | None:
        """The current skill of this name or alias, or None."""
        return self._skills.get(name) or self._aliases.get(name)

    def allowance(self, key_id: str) -> Allowance:
        """The limits of the API key with this id; none for a key of a skill's own file, or a visitor."""
        return self._keys.allowance(key_id)

    def limited_keys(self) -> Sequence[Allowance]:
        """The limits of all valid keys that have some, once for keys that share them."""
        return self._keys.limited()

    def knows(self, origin: str) -> bool:
        """Whether any skill may be embedded in pages of `origin`."""
        return any(skill.admits(origin) for skill in self._skills.values())

    def recognise(self, shown: str | None) -> Caller:
        """The caller who sent this API key; raises Unauthorized if it is missing, unknown or expired.

        Call it once a request, before anything that costs: it hashes the key and compares it with every known one.
        """
        if shown is None:
            raise Unauthorized("Send an API key: `Authorization: Bearer ...`.", code="missing_api_key")
        wanted = digest(shown)
        found = self._keys.look_up(wanted)
        key = found if found and not found.revoked and not found.expired else None
        opened = [skill.name for skill in self if _holds(skill, wanted)]
        if key is None and not opened:
            if found is not None and not found.revoked:
                raise Unauthorized(f"This API key expired at {found.expires}.", code="api_key_expired")
            raise Unauthorized("The API key is not known.", code="invalid_api_key")
        skills = frozenset(opened).union(key.skills if key else ())
        return Caller(wanted[:KEY_ID], skills, frozenset(key.groups if key else ()))

    def authorise(self, name: str, caller: Caller) -> Grant:
        """The skill of this name or alias for this caller; raises NotFound, or Forbidden if the key does not open it.

        The error names the skills that the key opens.
        """
        skill = self.get(name)
        if skill is None:
            opened = [skill.name for skill in self if skill.name in caller.skills]
            hint = f" this API key may use {', '.join(opened[:MOST_NAMED])}" if opened else " this API key opens none"
            raise NotFound(f"There is no skill {name[:64]!r}:{hint}.", param="model", code="model_not_found")
        if skill.name not in caller.skills:
            raise Forbidden(f"This API key may not use the skill {name!r}.", code="key_not_allowed")
        return Grant(skill, caller.key_id, caller.groups)

    def usable(self, caller: Caller) -> list[Grant]:
        """Every skill that the caller may use; raises Forbidden if there is none."""
        grants = [Grant(skill, caller.key_id, caller.groups) for skill in self if skill.name in caller.skills]
        if not grants:
            raise Forbidden("This API key may not use any skill.", code="key_not_allowed")
        return grants


def names_of(skill: Skill) -> Iterator[tuple[str, str]]:
    """A skill's name and aliases, each with its field."""
    yield "name", skill.name
    for index, alias in enumerate(skill.aliases):
        yield f"aliases[{index}]", alias


def _holds(skill: Skill, wanted: str) -> bool:
    """Whether the skill's file lists this digest; compares all of them, so that the time taken tells nothing."""
    return sum(hmac.compare_digest(wanted, known) for known in skill.keys) > 0
