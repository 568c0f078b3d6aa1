"""The knowledge that skills answer from now, by reference; belongs to the asyncio loop, which alone changes it."""

from collections.abc import Iterable, Mapping

from server.knowledge.search import Knowledge
from server.models.knowledge import CurrentKnowledge, KnowledgeLoader
from server.skills.skill import Skill


class Shelf:
    """Opened knowledge; a reference is a skill's `knowledge` setting."""

    def __init__(self, loader: KnowledgeLoader, current: Mapping[str, CurrentKnowledge] | None = None) -> None:
        self._loader = loader
        self._current = dict(current or {})

    def of(self, skill: Skill) -> Knowledge | None:
        """The knowledge of a skill; None if it names none."""
        found = self._current.get(skill.knowledge)
        return found.knowledge if found else None

    def name(self, skill: Skill) -> str:
        """The label of a skill's knowledge, NAME@NUMBER or the directory's name; empty without one."""
        found = self._current.get(skill.knowledge)
        return found.name if found else ""

    def load(self, skills: Iterable[Skill]) -> dict[str, CurrentKnowledge]:
        """Open what `skills` name and is not open yet; takes seconds, so call it in a thread.

        Raises ConfigError, RegistryError or ArtifactError.
        """
        wanted = {skill.knowledge for skill in skills} - {"", *self._current}
        return {reference: self._loader.open(reference) for reference in sorted(wanted)}

    def arrange(self, skills: Iterable[Skill], new: Mapping[str, CurrentKnowledge]) -> None:
        """Keep exactly what `skills` name, the `new` ones among it; searches that have begun end in the old."""
        wanted = {skill.knowledge for skill in skills}
        self._current = {name: one for name, one in {**self._current, **new}.items() if name in wanted}

    def add(self, new: Mapping[str, CurrentKnowledge]) -> None:
        """Keep `new` until the next `arrange`, for drafts."""
        self._current = {**self._current, **new}

    @property
    def current(self) -> Mapping[str, CurrentKnowledge]:
        """What is open, by reference."""
        return dict(self._current)
