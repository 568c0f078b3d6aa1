"""Skills: what callers ask for as `model`, who may ask, and the decision for one request.

Denied by default: a skill that names neither a key nor an origin can be used by nobody.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Self

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from server.config import read
from server.errors import ConfigError, Forbidden, NotFound, Unauthorized

ORIGIN = re.compile(r"https?://([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
KEY_ID = 12
DIGEST = re.compile(r"[0-9a-f]{64}")


class Example(Struct, frozen=True, forbid_unknown_fields=True):
    """A question and how the skill is to answer it."""

    question: Annotated[str, Meta(min_length=1)]
    answer: Annotated[str, Meta(min_length=1)]


class Skill(Struct, frozen=True, forbid_unknown_fields=True):
    """One TOML file: a system prompt, its limits, and who may use it."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    title: str = ""
    """What the widget shows; the name if empty."""
    greeting: str = ""
    system: str = ""
    """Comes first in every conversation; callers cannot remove it."""
    examples: tuple[Example, ...] = ()
    """Turns that every conversation begins with; small models follow them far better than instructions."""
    origins: tuple[str, ...] = ()
    """Web origins whose pages may embed the widget: scheme://host[:port]."""
    keys: tuple[str, ...] = ()
    """SHA-256 of the API keys, in hexadecimal, as `secateur keys create` prints them."""
    max_tokens: Annotated[int, Meta(ge=1)] = 256
    """The longest reply unless a caller asks for another; without `tokens_per_reply` none is longer."""
    tokens_per_reply: Annotated[int, Meta(ge=1)] | None = None
    """The most that a caller may ask for as `max_tokens`."""
    tokens_per_day: Annotated[int, Meta(ge=1)] | None = None
    """Prompts and replies together, UTC; a reply that reaches it ends there, and later ones are answered 429."""
    tokens_per_month: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0

    @property
    def revision(self) -> str:
        """Changes with anything in the file but who may use it; the ledger notes it."""
        said = replace(self, keys=(), origins=())
        return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()[:12]


class Credentials(Struct, frozen=True):
    """What a request shows of its sender; None where it shows nothing."""

    key: str | None = None
    origin: str | None = None


class Grant(Struct, frozen=True):
    """A skill that the caller may use; `trusted` callers hold a key, the others are a web page's visitors."""

    skill: Skill
    trusted: bool
    key_id: str = ""
    """Tells keys apart in the ledger: the first digits of the key's SHA-256. Empty without a key."""


class Skills:
    """All configured skills, by name."""

    def __init__(self, skills: Iterable[Skill]) -> None:
        self._skills = {skill.name: skill for skill in skills}
        self._origins = frozenset(origin for skill in self._skills.values() for origin in skill.origins)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read one TOML file or every one in a folder; raises ConfigError naming the file and the field."""
        files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{path} has no skill: put one TOML file for each skill there")
        found: dict[str, Path] = {}
        skills = []
        for file in files:
            skill = read(file, Skill)
            _check(file, skill)
            if skill.name in found:
                raise ConfigError(f"{file}: the name {skill.name!r} at `$.name` is taken by {found[skill.name]}")
            found[skill.name] = file
            skills.append(skill)
        return cls(skills)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of their files."""
        return tuple(self._skills)

    def __iter__(self) -> Iterator[Skill]:
        return iter(self._skills.values())

    def knows(self, origin: str) -> bool:
        """Whether any skill may be embedded in pages of `origin`."""
        return origin in self._origins

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
        return Grant(skill, trusted=True, key_id=digest(credentials.key)[:KEY_ID])
    if credentials.origin is not None and credentials.origin in skill.origins:
        return Grant(skill, trusted=False)
    return None


def _holds(skill: Skill, key: str) -> bool:
    """Compares with every key of the skill, so that the time taken does not tell which one was close."""
    shown = digest(key)
    return sum(hmac.compare_digest(shown, known) for known in skill.keys) > 0


def _check(file: Path, skill: Skill) -> None:
    """What a type cannot say about a skill."""
    for index, origin in enumerate(skill.origins):
        if not ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"{file}: {origin!r} at `$.origins[{index}]` is no origin; write scheme://host or scheme://host:port, "
                "in lower case and without a path (`*` and `null` would let every page in)"
            )
    for index, known in enumerate(skill.keys):
        if not DIGEST.fullmatch(known):
            raise ConfigError(
                f"{file}: `$.keys[{index}]` is no SHA-256 in hexadecimal; paste the line of `secateur keys create`"
            )
