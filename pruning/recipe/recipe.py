"""A recipe as one frozen value, read from TOML: what to prune, how, on which data, and how to judge the result.

An invalid file raises RecipeError with the path of the mistake, what is wrong and what is allowed.
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
from pruning.recipe.order import refuse_lost_zeros, refuse_nothing_kept
from pruning.recipe.sources import OFF_GRID, SELF
from pruning.recipe.texts import ALL_BUCKETS, EvaluatedText, WeightedText, one_or_several, refuse_repeated


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The token sequences on which layer inputs are observed while pruning."""

    source: str = ""
    """Where the text comes from. A file of plain text, JSON lines or JSON, any of them gzipped: a path, or
    `package:module/file` in an installed Python package. A column of a dataset:
    `dataset:NAME[:config][:split][:column]`. Or "self": sequences sampled from the base itself, where there is no text
    (https://arxiv.org/abs/2410.17170); `buckets` is then ignored."""
    sources: tuple[WeightedText, ...] = ()
    """Several texts instead of `source`, mixed by weight: whole sequences of each, spread evenly over the others."""
    buckets: tuple[Bucket, ...] = ALL_BUCKETS
    """Which tenths of the documents to draw from, 0 to 9, by the hash of their titles."""
    sequences: Count = 64
    """Number of sequences."""
    tokens: Annotated[int, Meta(ge=2)] = 512
    """Length of each sequence, in tokens."""
    seed: int = 0
    """Seeds the order of the documents, or the sampling of "self"."""
    batch: Count = 8
    """Sequences in memory at once: more are faster and need more memory."""

    def __post_init__(self) -> None:
        one_or_several(self.source, self.buckets, self.sources, "sources")
        refuse_repeated(self.sources)

    @property
    def texts(self) -> tuple[WeightedText, ...]:
        """The sources with their weights; one where `source` is given."""
        return self.sources or (WeightedText(self.source, self.buckets),)


def texts_or_calibration(
    source: str | None, buckets: tuple[Bucket, ...] | None, calibration: Calibration
) -> tuple[WeightedText, ...]:
    """The texts of a stage that gives `source`, `buckets`, both or neither; what is missing is the calibration's."""
    theirs = calibration.texts
    if source is None:
        return tuple(WeightedText(text.source, buckets or text.buckets, text.weight) for text in theirs)
    known = next((text.buckets for text in theirs if text.source == source or not calibration.sources), ALL_BUCKETS)
    return (WeightedText(source, buckets or known),)


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The texts on which perplexity is measured before and after pruning."""

    source: str = ""
    """Where the text comes from, as in `calibration.source`; "self" is not allowed."""
    texts: tuple[EvaluatedText, ...] = ()
    """Several texts instead of `source`, each measured apart; the first ranks models where one figure is needed."""
    buckets: tuple[Bucket, ...] = ALL_BUCKETS
    """Which tenths of the documents; choose others than the calibration's, or the perplexity flatters the result."""
    tokens: Annotated[int, Meta(ge=2)] = 8192
    """Number of tokens of each text, rounded down to whole windows."""
    window: Annotated[int, Meta(ge=2)] = 512
    """Length of each window, in tokens; windows do not overlap."""
    seed: int = 0
    """Seeds the order of the documents."""

    def __post_init__(self) -> None:
        one_or_several(self.source, self.buckets, self.texts, "texts")
        names = [text.name for text in self.texts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two texts are named {twice[0]}: names must differ")
        if SELF in {self.source, *(text.source for text in self.texts)}:
            raise ValueError(f'source "{SELF}" is for calibration only: perplexity needs a text by others')
        if self.tokens < self.window:
            raise ValueError(f"tokens = {self.tokens} do not fill one window of {self.window}")

    @property
    def every(self) -> tuple[EvaluatedText, ...]:
        """The texts by name; the name of a single `source` is empty."""
        return self.texts or (EvaluatedText("", self.source, self.buckets),)


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole recipe; recipes that make the same artifact have equal digests."""

    base: str
    """The model to prune: a Hugging Face directory, a GGUF file, or `package:module/file.gguf`, with a range such as
    `{1..4}` where several packages hold parts of the file. `off-grid:` before any of them prunes a copy that computes
    the same function with weights on no grid, as a model has that was never quantised."""
    calibration: Calibration
    """The text that the model is pruned on."""
    evaluation: Evaluation
    """The text that perplexity is measured on."""
    stages: tuple[Stage, ...]
    """What is done to the model, in this order. Matrices of a GGUF file that no stage changes keep its codes, where the
    runtime has such a layout (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0); `[]` stores the file as it is."""
    chat_template: str = ""
    """A Jinja file, a path or `package:module/file`, used in place of the base's own chat template: by calibration,
    evaluation, export and serving. For a base without one, which could not serve a chat otherwise."""
    tasks: tuple[str, ...] = ()
    """Task files that the finished artifact is scored on; it must pass their gates."""
    gates: Gates = Gates()
    """Gates for every task in `tasks` that measures the figure; where a task has its own, the stricter one applies."""

    def __post_init__(self) -> None:
        if self.gates != Gates() and not self.tasks:
            raise ValueError("gates are judged on tasks, and there are none: name a task file in `tasks`")
        length, sequences = self.calibration.tokens, self.calibration.sequences
        for stage in self.stages:
            if isinstance(stage, Layerwise) and isinstance(stage.allocation, Search):
                needed = 2 * ceil(stage.allocation.tokens / length)
                if needed > sequences:
                    raise ValueError(
                        f"a search with tokens = {stage.allocation.tokens} needs twice that many calibration tokens, "
                        f"{needed} sequences of {length}, but calibration.sequences is {sequences}"
                    )
        refuse_lost_zeros(self.stages)
        on_grid = ".gguf" in self.base and not self.base.startswith(OFF_GRID)
        refuse_nothing_kept(self.stages, None if on_grid else "the base")
        if sum(isinstance(stage, Vocabulary) for stage in self.stages) > 1:
            raise ValueError("vocabulary is there twice: remove all tokens at once, with a smaller keep")

    def values(self) -> dict[str, Any]:
        """The recipe as plain values, defaults included, as recorded in the lineage."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's values without tasks and gates, which judge the artifact but do not change it.

        The chat template counts by its content, as part of the base's digest.
        """
        making = msgspec.structs.replace(self, tasks=(), gates=Gates(), chat_template="")
        return hashlib.sha256(msgspec.json.encode(making, order="deterministic")).hexdigest()


def read(path: Path) -> Recipe:
    """The recipe in the TOML file `path`; RecipeError says where it is wrong and what is allowed there."""
    recipe: Recipe = read_as(Recipe, path, RecipeError)
    return recipe


def read_as(kind: Any, path: Path, refusal: type[PruningError]) -> Any:
    """The value of type `kind` in the TOML file `path`; `refusal` says where it is wrong and what is allowed there."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, thousands of digits, deep nesting
        raise refusal(f"{path}: is not TOML: {error}") from None
    if place := _not_finite(values):
        raise refusal(f"{path}: Expected a finite number - at `${place}`")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise refusal(f"{path}: {error}{_allowed(kind, str(error), values)}") from None


def _not_finite(value: Any) -> str | None:
    """The path to a number in `value` that is infinite or NaN, which TOML allows and no option does; None if none."""
    if isinstance(value, float) and not isfinite(value):
        return ""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if (place := _not_finite(inner)) is not None:
            return f"[{key}]{place}" if isinstance(key, int) else f".{key}{place}"
    return None


def _allowed(root: Any, message: str, values: dict[str, Any]) -> str:
    """`; allowed: ...` for an unknown field or tag that msgspec's `message` reports, else an empty string."""
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
    """The field names of the first of `kinds`, its tag field first."""
    kind = kinds[0]
    return [*([kind.tag_field] if kind.tag_field else []), *(field.encode_name for field in kind.fields)]


def _options(root: Any, values: Any, steps: list[str]) -> list[msgspec.inspect.StructType]:
    """Every struct type allowed at the path `steps` of field names and indices."""
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
    """The struct type that the tag in `values` selects at the path `steps`; all allowed ones where it selects none."""
    inner: Any = values
    for step in steps:
        inner = inner[int(step)] if step.isdigit() else inner[step]
    return _chosen(_options(root, values, steps), inner)


def _chosen(kinds: list[msgspec.inspect.StructType], values: Any) -> list[msgspec.inspect.StructType]:
    """The one of `kinds` whose tag is in `values`, else all of them."""
    return [kind for kind in kinds if kind.tag_field and values.get(kind.tag_field) == kind.tag] or kinds


def _structs(kind: msgspec.inspect.Type) -> list[msgspec.inspect.StructType]:
    """The struct types in `kind`, inside unions and constraints too."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return _structs(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return [struct for option in kind.types for struct in _structs(option)]
    return [kind] if isinstance(kind, msgspec.inspect.StructType) else []
