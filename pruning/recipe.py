"""What to prune, how, on which data, and how to judge it: one frozen value, read from TOML.

A mistake in the file is answered with its path, what is wrong there and what is allowed.
"""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pruning.errors import RecipeError
from pruning.structured.importance import AnyImportance
from pruning.techniques import AnyTechnique
from server.checkpoint.layouts import Group

Count = Annotated[int, Meta(ge=1)]
Bucket = Annotated[int, Meta(ge=0, le=9)]
ALL_BUCKETS = tuple(range(10))


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text that a model is pruned on."""

    source: str
    """A text file, JSON lines, or a JSON object of texts; a path, or `package:module/file`."""
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


class OWL(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="owl"):
    """Remove less from blocks with more outliers of |weight| x input norm, for one more forward of the dense model."""

    outliers: Annotated[float, Meta(gt=1)] = 5.0
    """An outlier is above this many times the block's mean."""
    spread: Annotated[float, Meta(gt=0, lt=0.5)] = 0.08
    """The fractions lie over a range of twice this."""


class Layerwise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="layerwise"):
    """Prune every linear layer of every block with one technique."""

    technique: AnyTechnique
    order: Literal["block", "sequential"] = "block"
    """"block" observes the dense block once; "sequential" lets each group of linears that share an input see the groups
    before it pruned, for about half a forward more."""
    allocation: OWL | None = None
    """How the fraction differs between blocks; None: not at all."""

    def __post_init__(self) -> None:
        sparsity = self.technique.sparsity
        if self.allocation and isinstance(sparsity, str):
            raise ValueError(f'allocation needs a fraction such as 0.6, and sparsity is "{sparsity}"')
        if self.allocation and 2 * self.allocation.spread >= min(float(sparsity), 1 - float(sparsity)):
            raise ValueError(
                f"twice the spread {self.allocation.spread} must be less than sparsity and than 1 - sparsity"
            )


class Depth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="depth"):
    """Remove the blocks that are missed least."""

    remove: Count
    """Number of blocks to remove."""
    by: Literal["influence", "angle", "perplexity"] = "influence"
    """How much each changes the state, how far a run of them turns it, or perplexity without each in turn."""
    sequences: Count = 8
    """Calibration sequences on which perplexity is tried; the other measures take all."""


class Width(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="width"):
    """Remove feed-forward units and whole groups of attention heads, the same number of each from every block."""

    importance: AnyImportance
    ffn: Annotated[float, Meta(gt=0, lt=1)] | Annotated[int, Meta(ge=32, multiple_of=32)] | None = None
    """The fraction of feed-forward units to remove, rounded to a multiple of 32; or the multiple of 32 that stays."""
    kv_groups: Annotated[int, Meta(ge=0)] = 0
    """KV groups to remove, with all their heads."""
    plan: dict[str, Literal["colwise", "rowwise"]] = {}
    """The layers by their names within a block, where the architecture has no tensor-parallel plan."""

    def __post_init__(self) -> None:
        if self.ffn is None and not self.kv_groups:
            raise ValueError("neither ffn nor kv_groups says what to remove")


class AWQ(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="awq"):
    """Scale the input columns that see large activations, and round every linear layer of every block."""

    bits: Literal[2, 3, 4, 8] = 4
    """Codes of 2 and 3 bits are for comparison: they are stored in 4."""
    group: Group = 64
    """Input columns that share one scale in each row."""
    scheme: Literal["symmetric"] = "symmetric"


class LoRA(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Adapters of `rank`, scaled by `alpha` / `rank`, in place of the weights themselves."""

    rank: Count = 8
    alpha: Count = 16


class Distill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="distill"):
    """Train what is left towards the base's own predictions; pruned weights stay exactly zero."""

    tokens: Count
    """The budget; it is spent in whole batches, at least one."""
    length: Annotated[int, Meta(ge=2)] = 256
    """Tokens in each sequence."""
    batch: Count = 4
    """Sequences in each step."""
    learning_rate: Annotated[float, Meta(gt=0)] = 1e-4
    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """The fraction of the steps in which the learning rate rises; then it falls along a cosine."""
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    interval: Count = 10
    """Steps between two scores on the held-out texts; a killed run repeats no more."""
    held_out: Count = 16
    """Sequences of texts that are never trained on."""
    seed: int = 0
    embeddings: bool = False
    """Whether embeddings and head are trained too."""
    source: str | None = None
    """The text; without it, that of the calibration."""
    buckets: tuple[Bucket, ...] | None = None
    """Which tenths of the texts; without it, those of the calibration."""
    lora: LoRA | None = None
    pretraining_tokens: Count | None = None
    """Tokens that the base was trained on, for the record."""

    @property
    def steps(self) -> int:
        """Batches in the budget."""
        return max(self.tokens // (self.batch * self.length), 1)


class Reconstruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="reconstruct"):
    """Train each block alone towards the base's states after it; one block in memory, pruned weights stay zero."""

    steps: Count = 60
    """Steps for each block."""
    batch: Count = 2
    """Sequences of the calibration in each step."""
    learning_rate: Annotated[float, Meta(gt=0)] = 2e-4
    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.05
    interval: Count = 10
    """Steps between two scores on the held-out sequences."""
    held_out: Count = 8
    """The last sequences of the calibration, which are never trained on."""
    seed: int = 0


Stage = Layerwise | Depth | Width | AWQ | Distill | Reconstruct


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole recipe; equal recipes have equal digests."""

    base: str
    """A Hugging Face directory, a GGUF file, or `package:module/file.gguf`."""
    calibration: Calibration
    evaluation: Evaluation
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1)]

    def values(self) -> dict[str, Any]:
        """The recipe in plain values, defaults included, as the lineage records it."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's values."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


def read(path: Path) -> Recipe:
    """The recipe in the TOML file `path`; raises RecipeError with the file, the path in it and what is allowed."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: is not TOML: {error}") from None
    try:
        return msgspec.convert(values, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}{_allowed(str(error), values)}") from None


def _allowed(message: str, values: dict[str, Any]) -> str:
    """The names that could stand where `message` says something is unknown, or nothing."""
    path = re.search(r"at `\$(.*)`$", message)
    steps = re.findall(r"\w+", path[1]) if path else []
    if "unknown field" in message:
        names = _names(_kinds(Recipe, values, steps))
    elif "Invalid value" in message and steps:
        names = [str(kind.tag) for kind in _options(Recipe, values, steps[:-1])]
    else:
        return ""
    return f"; allowed: {', '.join(sorted(names))}"


def _names(kinds: list[msgspec.inspect.StructType]) -> list[str]:
    """The field names of the struct that was meant, its tag's field first."""
    kind = kinds[0]
    return [*([kind.tag_field] if kind.tag_field else []), *(field.encode_name for field in kind.fields)]


def _options(root: type, values: Any, steps: list[str]) -> list[msgspec.inspect.StructType]:
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


def _kinds(root: type, values: Any, steps: list[str]) -> list[msgspec.inspect.StructType]:
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
