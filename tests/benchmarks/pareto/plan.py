"""The candidates of the fronts and the texts that judge them, read from one TOML file."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pruning.errors import RecipeError
from pruning.recipe.options import Stage
from pruning.recipe.recipe import Calibration, Evaluation, Recipe, read_as


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A held-out text of one kind."""

    name: str
    source: str
    """As in `calibration.source`."""
    buckets: tuple[int, ...]
    windows: int
    characters: int
    """About the length of a window, which ends between two words."""


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model as found: what its candidates are pruned, rounded and compared with."""

    name: str
    source: str
    """As `base` in a recipe, or `off-grid:` before one."""
    note: str
    """What the pages say of it."""


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One point of the fronts: a recipe's stages, or a file of llama.cpp's own quantiser."""

    base: str
    name: str
    kind: Literal["dense", "pruned", "peer"]
    bits: float
    """Bits of the blocks' codes, without scales."""
    stages: tuple[Stage, ...] = ()
    """None for the base itself, for peers, and where `recipe` names a file."""
    recipe: str = ""
    """A recipe's file instead of stages: its artifact is `build/STEM`, with its own calibration."""
    file: str = ""
    """A peer's type of file, such as Q4_K_M, or "as found" for the package's own."""
    engine: Literal["secateur", "llama.cpp", "openvino-genai"] = "secateur"
    calibration: dict[str, Any] = {}
    """Overrides of the plan's calibration."""
    raced: bool = True
    """Whether its speed is measured."""

    @property
    def key(self) -> str:
        """Base and name, unique in a plan."""
        return f"{self.base}: {self.name}"


class ParetoPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All candidates, and what they share."""

    calibration: Calibration
    evaluation: Evaluation
    """Of the recipes only; the fronts use `texts` and `task`."""
    task: str
    """A task of pairs, whose choices are counted."""
    texts: Annotated[tuple[Text, ...], Meta(min_length=1)]
    bases: Annotated[tuple[Base, ...], Meta(min_length=1)]
    candidates: Annotated[tuple[Candidate, ...], Meta(min_length=1)]
    notes: str = ""
    """What the page says before its tables, in Markdown."""

    def __post_init__(self) -> None:
        keys = [candidate.key for candidate in self.candidates]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"two candidates are {twice[0]}: names must differ within a base")
        known = {base.name for base in self.bases}
        if lost := sorted({candidate.base for candidate in self.candidates} - known):
            raise ValueError(f"a candidate names the base {lost[0]}; allowed: {', '.join(sorted(known))}")

    def base(self, candidate: Candidate) -> Base:
        """The base of `candidate`."""
        return next(base for base in self.bases if base.name == candidate.base)

    def recipe(self, candidate: Candidate, source: str) -> Recipe:
        """The recipe of a candidate with stages, whose base lies at `source`; raises RecipeError, naming it."""
        common: dict[str, Any] = msgspec.to_builtins(self)
        values = {
            "base": source,
            "calibration": common["calibration"] | candidate.calibration,
            "evaluation": common["evaluation"],
            "stages": msgspec.to_builtins(candidate.stages),
        }
        try:
            return msgspec.convert(values, Recipe)
        except msgspec.ValidationError as error:
            raise RecipeError(f"the candidate {candidate.key}: {error}") from None


def read(path: Path) -> ParetoPlan:
    """The plan in `path`; raises RecipeError with the place of a mistake and what is allowed there."""
    plan: ParetoPlan = read_as(ParetoPlan, path, RecipeError)
    return plan
