"""The rows of a benchmark plan, and the jobs that measure them: one recipe per row and seed."""

import hashlib
import os
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from pruning.errors import RecipeError
from pruning.recipe.options import Stage
from pruning.recipe.recipe import Calibration, Evaluation, Recipe
from pruning.recipe.texts import EvaluatedText

FIRST = "first"
"""Name of the plan's own text beside further ones."""


class BenchmarkRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the table: the stages of a recipe, measured with each of the seeds."""

    group: str
    name: str
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...] = (0,)
    """Seeds of the calibration."""
    alone: bool = False
    """Run by itself on all cores, because its time is part of the claim."""
    calibration: dict[str, Any] = {}
    """Overrides of the plan's calibration."""

    def __post_init__(self) -> None:
        if "seed" in self.calibration:
            raise ValueError("the seeds of a row's calibration are its `seeds`")


class BenchmarkPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rows, and the base, calibration and evaluation that they share."""

    base: str
    calibration: Calibration
    evaluation: Evaluation
    rows: Annotated[tuple[BenchmarkRow, ...], Meta(min_length=1)]
    others: tuple[EvaluatedText, ...] = ()
    """Further texts that rows are measured on. A row that was measured before keeps its result and has no figures of
    them."""


class BenchmarkJob(NamedTuple):
    """One row with one seed."""

    row: BenchmarkRow
    seed: int
    recipe: Recipe
    threads: int
    evaluation: Evaluation
    """The plan's, without further texts."""

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe without defaults, so that a new option with a default leaves old digests unchanged.

        Nor do the plan's further texts change it.

        After a change of a default or of a stage's results, remove its rows from the results file by hand.
        """
        recipe = msgspec.structs.replace(self.recipe, evaluation=self.evaluation)
        return hashlib.sha256(msgspec.json.encode(without_defaults(recipe), order="deterministic")).hexdigest()


def jobs(plan: BenchmarkPlan) -> Iterator[BenchmarkJob]:
    """Every row with every seed, in the plan's order: the first seed of all rows before the second of any."""
    for number in range(max(len(row.seeds) for row in plan.rows)):
        for row in (row for row in plan.rows if number < len(row.seeds)):
            seed = row.seeds[number]
            threads = (os.cpu_count() or 1) if row.alone else 1
            yield BenchmarkJob(row, seed, _recipe(plan, row, seed), threads, plan.evaluation)


def without_defaults(value: Any) -> Any:
    """A recipe, or a part of one, as plain values without the fields that equal their defaults."""
    if isinstance(value, tuple):
        return [without_defaults(item) for item in value]
    if not isinstance(value, msgspec.Struct):
        return value
    config = value.__struct_config__
    kind = {} if config.tag_field is None else {config.tag_field: config.tag}
    said = [field.name for field in msgspec.structs.fields(value) if _differs_from_default(value, field)]
    return kind | {name: without_defaults(getattr(value, name)) for name in said}


def _recipe(plan: BenchmarkPlan, row: BenchmarkRow, seed: int) -> Recipe:
    """The recipe of one job; raises RecipeError, naming the row, if its overrides are invalid."""
    common: dict[str, Any] = msgspec.to_builtins(plan)
    calibration = common["calibration"] | row.calibration | {"seed": seed}
    values = {"base": plan.base, "calibration": calibration, "evaluation": _evaluation(plan)}
    try:
        return msgspec.convert(values | {"stages": msgspec.to_builtins(row.stages)}, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"the row {row.name} of {row.group}: {error}") from None


def _evaluation(plan: BenchmarkPlan) -> dict[str, Any]:
    """The plan's evaluation with its further texts, as plain values."""
    values: dict[str, Any] = msgspec.to_builtins(plan.evaluation)
    if not plan.others:
        return values
    texts = [msgspec.structs.replace(text, name=text.name or FIRST) for text in plan.evaluation.every]
    values["texts"] = msgspec.to_builtins([*texts, *plan.others])
    return {key: value for key, value in values.items() if key not in ("source", "buckets")}


def _differs_from_default(value: msgspec.Struct, field: msgspec.structs.FieldInfo) -> bool:
    """Whether `field` of `value` is required or differs from its default."""
    if field.default_factory is not msgspec.NODEFAULT:
        return bool(getattr(value, field.name) != field.default_factory())
    return field.default is msgspec.NODEFAULT or bool(getattr(value, field.name) != field.default)
