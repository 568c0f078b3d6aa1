"""What to prune, how, on which data, and how to judge it: one frozen value, read from TOML.

A mistake in the file is answered with its path, what is wrong there and what is allowed.
"""

import hashlib
import re
import tomllib
from math import ceil, isfinite
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pruning.errors import PruningError, RecipeError
from pruning.recipe.allocation import Search
from pruning.recipe.bounds import Bucket, Count, Gates
from pruning.recipe.options import Layerwise, Stage, Vocabulary
from pruning.recipe.sources import SELF

ALL_BUCKETS = tuple(range(10))


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text that a model is pruned on."""

    source: str
    """A text file, JSON lines, or a JSON object of texts, as a path or `package:module/file`; a column of a dataset,
    `dataset:NAME[:config][:split][:column]`; or "self", what the base itself writes, which knows no buckets."""
    buckets: tuple[Bucket, ...] = ALL_BUCKETS
    """Which tenths of the texts, by the hash of their title."""
    sequences: Count = 64
    tokens: Annotated[int, Meta(ge=2)] = 512
    """Tokens in each sequence."""
    seed: int = 0
    batch: Count = 8
    """Sequences that are in memory at once."""


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text that perplexity is measured on; keep its buckets apart from calibration's."""

    source: str
    buckets: tuple[Bucket, ...] = ALL_BUCKETS
    tokens: Annotated[int, Meta(ge=2)] = 8192
    """Tokens in all."""
    window: Annotated[int, Meta(ge=2)] = 512
    """Tokens in each non-overlapping window."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.source == SELF:
            raise ValueError(f'source "{SELF}" is for calibration: perplexity needs a text by others')
        if self.tokens < self.window:
            raise ValueError(f"tokens = {self.tokens} do not fill one window of {self.window}")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole recipe; recipes that make the same artifact have equal digests."""

    base: str
    """A Hugging Face directory, a GGUF file, or `package:module/file.gguf`."""
    calibration: Calibration
    evaluation: Evaluation
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1)]
    tasks: tuple[str, ...] = ()
    """Files of tasks that the artifact is judged by at the end; their gates are its gates."""
    gates: Gates = Gates()
    """What every one of them must keep to as well, where it measures that; the stricter of two limits counts."""

    def __post_init__(self) -> None:
        if self.gates != Gates() and not self.tasks:
            raise ValueError("gates are judged on a task: name its file in `tasks`")
        length, sequences = self.calibration.tokens, self.calibration.sequences
        for stage in self.stages:
            if isinstance(stage, Layerwise) and isinstance(stage.allocation, Search):
                needed = 2 * ceil(stage.allocation.tokens / length)
                if needed > sequences:
                    raise ValueError(
                        f"a search with tokens = {stage.allocation.tokens} needs twice as many of the calibration, "
                        f"{needed} sequences of {length}, and it has {sequences}"
                    )
        if any(isinstance(stage, Vocabulary) for stage in self.stages[:-1]):
            raise ValueError("vocabulary must be the last of the stages: the others work on the base's token ids")

    def values(self) -> dict[str, Any]:
        """The recipe in plain values, defaults included, as the lineage records it."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's values but tasks and gates, which judge what was made and do not change it."""
        making = msgspec.structs.replace(self, tasks=(), gates=Gates())
        return hashlib.sha256(msgspec.json.encode(making, order="deterministic")).hexdigest()


def read(path: Path) -> Recipe:
    """The recipe in the TOML file `path`; raises RecipeError with the file, the path in it and what is allowed."""
    recipe: Recipe = read_as(Recipe, path, RecipeError)
    return recipe


def read_as(kind: Any, path: Path, refusal: type[PruningError]) -> Any:
    """The value of type `kind` in the TOML file `path`; raises `refusal` with the place and what is allowed there."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, numbers of thousands of digits, nests as deep
        raise refusal(f"{path}: is not TOML: {error}") from None
    if place := _not_finite(values):
        raise refusal(f"{path}: Expected a finite number - at `${place}`")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise refusal(f"{path}: {error}{_allowed(kind, str(error), values)}") from None


def _not_finite(value: Any) -> str | None:
    """The path in `value` to a number that is infinite or none, which TOML has and no option takes."""
    if isinstance(value, float) and not isfinite(value):
        return ""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if (place := _not_finite(inner)) is not None:
            return f"[{key}]{place}" if isinstance(key, int) else f".{key}{place}"
    return None


def _allowed(root: Any, message: str, values: dict[str, Any]) -> str:
    """The names that could stand where `message` says that something in `values`, a `root`, is unknown, or nothing."""
    path = re.search(r"at `\$(.*)`$", message)
    steps = re.findall(r"\w+", path[1]) if path else []
    if "unknown field" in message:
        names = _names(_kinds(root, values, steps))
    elif "Invalid value" in message and steps:
        names = [str(kind.tag) for kind in _options(root, values, steps[:-1])]
    else:
        return ""
    return f"; allowed: {', '.join(sorted(names))}"


def _names(kinds: list[msgspec.inspect.StructType]) -> list[str]:
    """The field names of the struct that was meant, its tag's field first."""
    kind = kinds[0]
    return [*([kind.tag_field] if kind.tag_field else []), *(field.encode_name for field in kind.fields)]


def _options(root: Any, values: Any, steps: list[str]) -> list[msgspec.inspect.StructType]:
    """Every struct that could stand at `steps`, which are field names and indices."""
    kind: msgspec.inspect.Type = msgspec.inspect.type_info(root)
    for step in steps:
        if step.isdigit():
            values = values[int(step)]
            kind = kind.item_type if isinstance(kind, msgspec.inspect.VarTupleType) else kind
            continue
        struct = _chosen(_structs(kind), values)[0]
        kind = next(field.type for field in struct.fields if field.encode_name == step)
        values = values[step]
    return _structs(kind)


def _kinds(root: Any, values: Any, steps: list[str]) -> list[msgspec.inspect.StructType]:
    """The struct at `steps` that the values' own tag chooses."""
    inner: Any = values
    for step in steps:
        inner = inner[int(step)] if step.isdigit() else inner[step]
    return _chosen(_options(root, values, steps), inner)


def _chosen(kinds: list[msgspec.inspect.StructType], values: Any) -> list[msgspec.inspect.StructType]:
    """The one of `kinds` whose tag stands in `values`, or all of them."""
    return [kind for kind in kinds if kind.tag_field and values.get(kind.tag_field) == kind.tag] or kinds


def _structs(kind: msgspec.inspect.Type) -> list[msgspec.inspect.StructType]:
    """The structs in `kind`, looking through unions and constraints."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return _structs(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return [struct for option in kind.types for struct in _structs(option)]
    return [kind] if isinstance(kind, msgspec.inspect.StructType) else []
