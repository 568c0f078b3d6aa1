"""Loads the encoders of skills that embed, each once, and drops unused ones."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from server.errors import ConfigError
from server.skills.skill import Skill
from server.storage.packages import PACKAGE, located


class Recipe(Protocol):
    """How texts become vectors."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read, special ones included."""

    @property
    def query_prompt(self) -> str:
        """What the model expects before a question."""

    @property
    def document_prompt(self) -> str:
        """What the model expects before a passage."""


class Encoder(Protocol):
    """Encodes texts as vectors; `server.engine.runners.encoder.Encoder` is one."""

    dimension: int
    """Numbers in each vector."""
    vocabulary: int
    """The number of token ids."""

    @property
    def recipe(self) -> Recipe:
        """How its texts become vectors."""

    @property
    def special_tokens(self) -> int:
        """The number of special tokens around each text."""

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, not cut, without special tokens."""

    def encode(self, inputs: Sequence[Sequence[int]]) -> Any:
        """`vectors` float32 [texts, dimension], and the `tokens` read of each text."""


class NamedEncoder(Struct, frozen=True, eq=False):
    """A loaded encoder; `name` is its label in metrics and the ledger."""

    name: str
    encoder: Encoder

    @property
    def most(self) -> int:
        """The most tokens of an input without special ones."""
        return self.encoder.recipe.max_tokens - self.encoder.special_tokens


class Encoders:
    """The loaded encoders by reference, a skill's `encoder`; only the asyncio loop changes them."""

    def __init__(self, current: Mapping[str, NamedEncoder] | None = None) -> None:
        self._current = dict(current or {})

    def of(self, skill: Skill) -> NamedEncoder | None:
        """The encoder of a skill; None if it has none."""
        return self._current.get(skill.encoder)

    def load(self, skills: Iterable[Skill]) -> dict[str, NamedEncoder]:
        """Load what `skills` name and is not loaded yet; takes seconds, so call it in a thread.

        Raises ConfigError naming the skill, or ArtifactError.
        """
        wanted = {skill.encoder: skill for skill in skills if skill.encoder and skill.encoder not in self._current}
        return {reference: load(reference, skill) for reference, skill in wanted.items()}

    def arrange(self, skills: Iterable[Skill], new: Mapping[str, NamedEncoder]) -> None:
        """Keep exactly the encoders of `skills`, the `new` ones among them."""
        wanted = {skill.encoder for skill in skills}
        self._current = {name: one for name, one in {**self._current, **new}.items() if name in wanted}

    def users(self, skills: Iterable[Skill]) -> list[tuple[NamedEncoder, list[str]]]:
        """Each encoder, and the names of its skills."""
        names = {
            reference: [skill.name for skill in skills if skill.encoder == reference] for reference in self._current
        }
        return [(named, names[reference]) for reference, named in self._current.items()]


def load(reference: str, skill: Skill) -> NamedEncoder:
    """The encoder of a directory or `package:NAME/FOLDER`; raises ConfigError or ArtifactError."""
    from server.engine.runners.encoder import Encoder  # late: torch takes seconds, and few servers embed

    try:
        path = located(reference)
    except ConfigError as error:
        raise ConfigError(f"the `encoder` of the skill {skill.name!r} is not there: {error}") from None
    return NamedEncoder(name_of(reference, path), Encoder.open(path))


def name_of(reference: str, path: Path) -> str:
    """The label of an encoder: the name of its package or directory."""
    return reference.removeprefix(PACKAGE).partition("/")[0] if reference.startswith(PACKAGE) else path.resolve().name
