"""`secateur prune --check RECIPE`: says in about a second what is known without torch, a tokenizer's import or weights.

Each finding is of one question: does the recipe parse, is everything there that it names, do the stages fit the base,
will the result serve, do memory and disk suffice.
"""

import importlib.util
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pruning.commands.memory import GIGABYTE, disk_needed, memory_needed
from pruning.data.amounts import BYTES_PER_TOKEN, amounts
from pruning.errors import DataError, RecipeError
from pruning.evaluation.tasks.reading import read_task
from pruning.model.outline import Outline, outline
from pruning.model.source import REMEDY, refuse_template
from pruning.recipe.order import undone_quantisations
from pruning.recipe.parts import expanded
from pruning.recipe.recipe import Recipe, read
from pruning.recipe.sources import OFF_GRID, locate
from pruning.recipe.training import Distill
from pruning.stages.preflight import lengths, long_lengths, refuse_shapes, shared_texts, sources
from server.commands.start.doctor.finding import Finding, findings
from server.engine.native import absent
from server.engine.native.pages import available
from server.engine.native.plan.families import FAMILIES
from server.models.preflight import refuse_unknown
from server.text.tokenizer_files import read_template

DATASET = "dataset:"


def examine(path: Path, output: Path | None, cache: Path) -> Iterator[Finding]:
    """Every finding about the recipe in `path`; after a recipe that does not parse there are no others."""
    recipe = read(path)
    yield Finding("recipe", "ok", f"{path}: {len(recipe.stages)} stages, {len(recipe.tasks)} tasks")
    yield from findings("texts", lambda: _texts(recipe))
    yield from findings("tasks", lambda: _tasks(recipe))
    base: list[Outline] = []
    yield from findings("base", lambda: _base(recipe, base))
    for found in base:
        yield from findings("stages", lambda found=found: _stages(recipe, found))  # type: ignore[misc]
        yield from findings("chat template", lambda found=found: _template(recipe, found))  # type: ignore[misc]
        yield from _room(recipe, found, output or Path(), cache)


def _texts(recipe: Recipe) -> Iterator[Finding]:
    """Every source of text is there, and large enough by its bytes; of a dataset, the package that reads it."""
    named = sources(recipe)
    for source in named:
        if not source.startswith(DATASET):
            locate(source)
        elif importlib.util.find_spec("datasets") is None:
            raise DataError(f"{source} needs the package datasets: pip install 'secateur[data]'")
    for sentence in shared_texts("calibration", recipe.calibration.texts, recipe):
        yield Finding("texts", "warning", sentence, "Give them different buckets.")
    found = list(amounts(recipe))
    for amount in found:
        if amount.too_small:
            yield Finding("texts", "failed", str(amount), "Add text, or ask for fewer.")
        elif amount.is_doubtful:
            sentence = f"{amount}: too few at {BYTES_PER_TOKEN} bytes a token, which only the run counts"
            yield Finding("texts", "warning", sentence, "Add text, or ask for fewer.")
    read = {amount.source for amount in found}
    unread = [source for source in named if source not in read]
    counted = f", tokens estimated at {BYTES_PER_TOKEN} bytes each" if read else ""
    yield Finding("texts", "ok", f"{len(named)} sources are there{counted}{_not_read(unread)}")


def _not_read(sources: Sequence[str]) -> str:
    """The clause that names the sources that were not read."""
    return f"; found but not read: {', '.join(sources)}" if sources else ""


def _tasks(recipe: Recipe) -> Iterator[Finding]:
    """Every task parses, with its items."""
    for task in recipe.tasks:
        read_task(Path(task))
        yield Finding("task", "ok", task)


def _base(recipe: Recipe, found: list[Outline]) -> Iterator[Finding]:
    """The base is there, and of a type that can be pruned and served; its outline is appended to `found`."""
    reference = recipe.base.removeprefix(OFF_GRID)
    parts = [locate(part) for part in expanded(reference)]
    if len(parts) > 1:
        yield Finding("base", "ok", f"{len(parts)} parts are there; what they hold is known once they are joined")
        return
    base = outline(parts[0])
    refuse_unknown(base.config, parts[0])
    found.append(base)
    kind = base.config.get("model_type")
    yield Finding("base", "ok", f"{parts[0]}: {kind}, {base.parameters / 1e6:.1f} million parameters")
    if reason := absent() or (f"models of type {kind} have no plan in it" if kind not in FAMILIES else ""):
        yield Finding("runner", "warning", f"the native runner will not serve the result: {reason}", "Slower.")
    else:
        yield Finding("runner", "ok", "native")


def _stages(recipe: Recipe, base: Outline) -> Iterator[Finding]:
    """The stages fit the base's sizes, in their order."""
    for sentence in long_lengths(lengths(recipe), base.config):
        yield Finding("stages", "warning", sentence, "Take shorter sequences.")
    refuse_shapes(recipe, base.config)
    lora = any(isinstance(stage, Distill) and stage.lora for stage in recipe.stages)
    if lora and importlib.util.find_spec("peft") is None:
        raise RecipeError("lora needs the package peft: pip install 'secateur[lora]'")
    for sentence in undone_quantisations(recipe.stages):
        yield Finding("stages", "warning", sentence, "Quantise last.")
    yield Finding("stages", "ok", "they fit the base")


def _template(recipe: Recipe, base: Outline) -> Iterator[Finding]:
    """The result can serve a chat: there is a template, and it renders a question."""
    source, place = base.chat_template, "the base's own"
    if recipe.chat_template:
        path = locate(recipe.chat_template)
        source, place = read_template(path), str(path)
    if source is None:
        yield Finding(
            "chat template", "failed", "the base has none: the result could not serve a chat", f"Then {REMEDY}."
        )
        return
    refuse_template(source, base.special_tokens, place)
    yield Finding("chat template", "ok", place)


def _room(recipe: Recipe, base: Outline, output: Path, cache: Path) -> Iterator[Finding]:
    """Estimates of memory and disk beside what is free."""
    need, free = memory_needed(recipe, base), available()
    found = f"about {need / GIGABYTE:.1f} GB needed, {free / GIGABYTE:.1f} GB free"
    remedy = 'Take a machine with more memory, memory = "little" in distil, or a smaller batch.'
    yield Finding("memory", "warning", found, remedy) if need > free else Finding("memory", "ok", found)
    for name, folder, bytes_ in disk_needed(recipe, base, output, cache):
        there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
        free = shutil.disk_usage(there).free
        found = f"{name} in {folder}: at most {bytes_ / GIGABYTE:.1f} GB, {free / GIGABYTE:.1f} GB free"
        if bytes_ > free:
            yield Finding("disk", "failed", found, "Free some disk, or name a folder on another one.")
        else:
            yield Finding("disk", "ok", found)


def quiet() -> None:
    """Send the log's warnings to standard error, one sentence a line."""
    logging.basicConfig(level=logging.WARNING, format="secateur: %(message)s", stream=sys.stderr)
