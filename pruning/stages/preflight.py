"""Preflight of a recipe by its base's settings alone: lengths, shapes, texts; needs neither torch nor weights.

Says what can be said in a second. The stages' own `check` says the rest, with the model's skeleton and its data.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from pruning.errors import RecipeError
from pruning.model.settings import positions
from pruning.recipe.options import Depth, Layerwise, Stage, Vocabulary, Width
from pruning.recipe.recipe import Recipe
from pruning.recipe.sources import SELF
from pruning.recipe.texts import WeightedText
from pruning.recipe.training import Distill, Reconstruct, Shear, Training
from pruning.techniques.mathematics.sparsity import nm_pattern

logger = logging.getLogger(__name__)

MULTIPLE = 32
"""Feed-forward widths are multiples of this, which suits the kernels of all runtimes."""


class Shape(Struct, frozen=True):
    """The sizes of a decoder; 0 where the settings do not say."""

    blocks: int
    hidden: int
    ffn: int
    kv_groups: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """The sizes that a config.json gives."""

        def size(*names: str) -> int:
            return next((config[name] for name in names if isinstance(config.get(name), int)), 0)

        return cls(
            blocks=size("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
            hidden=size("hidden_size", "n_embd", "d_model"),
            ffn=size("intermediate_size", "n_inner", "ffn_dim"),
            kv_groups=size("num_key_value_heads", "num_attention_heads", "n_head", "num_heads"),
        )


def refuse_shapes(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Raise RecipeError, naming the stage, for one that does not fit the sizes that the stages before it leave."""
    base = shape = Shape.of(config)
    for number, stage in enumerate(recipe.stages):
        for problem in _problems(stage, shape, base, recipe):
            raise RecipeError(f"{problem} - at `$.stages[{number}]`, {to_builtins(stage)['kind']}")
        shape = _after(stage, shape)


def long_lengths(lengths: Mapping[str, int], config: Mapping[str, Any]) -> Iterator[str]:
    """A warning for each option whose sequences are beyond the rotary positions of a model.

    `lengths` maps the name of each option to its tokens per sequence. Raises RecipeError where positions are learned.
    """
    limit = positions(config)
    for name, length in lengths.items():
        if limit is None or length <= limit:
            continue
        sentence = f"{name} = {length} is beyond the {limit} positions of the model"
        if not any("rope" in key or key == "rotary_pct" for key in config):
            raise RecipeError(f"{sentence}: take {limit} or less")
        yield f"{sentence}, which was never trained at that length"


def refuse_long(lengths: Mapping[str, int], config: Mapping[str, Any]) -> None:
    """Log the warnings of `long_lengths`; raises RecipeError as it does."""
    for sentence in long_lengths(lengths, config):
        logger.warning("%s", sentence)


def lengths(recipe: Recipe) -> dict[str, int]:
    """Tokens per sequence of each option that sets them, by the option's name in the recipe."""
    found = {"calibration.tokens": recipe.calibration.tokens, "evaluation.window": recipe.evaluation.window}
    training = {n: stage for n, stage in enumerate(recipe.stages) if isinstance(stage, Training)}
    return found | {f"stages[{number}].length": stage.length for number, stage in training.items()}


def shared_texts(what: str, texts: Iterable[WeightedText], recipe: Recipe) -> Iterator[str]:
    """A warning, naming the source, where `texts` may contain a document that perplexity is measured on."""
    for text in texts:
        if any(text.shares(other) for other in recipe.evaluation.every):
            yield (f"{what} and evaluation share texts of {text.source}: the perplexity after pruning will flatter it")


def sources(recipe: Recipe) -> list[str]:
    """Every source of text that the recipe names, without "self", each once."""
    named = [text.source for text in recipe.calibration.texts]
    named += [text.source for text in recipe.evaluation.every]
    readers = [stage for stage in recipe.stages if isinstance(stage, Training | Vocabulary)]
    named += [name for stage in readers for name in stage.named_sources]
    return [source for source in dict.fromkeys(named) if source != SELF]


def _problems(stage: Stage, shape: Shape, base: Shape, recipe: Recipe) -> Iterator[str]:
    match stage:
        case Depth():
            yield from _too_many("remove", stage.remove, shape.blocks, 1, "blocks, of which one must remain")
        case Width() | Shear():
            yield from _smaller(stage, shape)
        case Layerwise():
            yield from _whole_groups(stage, shape)
        case Reconstruct():
            yield from _reconstruction(stage, shape, base, recipe)
        case Distill() if stage.states and (shape.blocks, shape.hidden) != (base.blocks, base.hidden):
            yield "states compares hidden states block by block, and an earlier stage changed blocks or hidden size"


def _smaller(stage: Width | Shear, shape: Shape) -> Iterator[str]:
    """What is kept cannot be more than there is."""
    if isinstance(stage, Width):
        yield from _too_many("kv_groups", stage.kv_groups, shape.kv_groups, 1, "KV groups, of which one must remain")
        try:
            _ffn_after(stage, shape.ffn)
        except RecipeError as error:
            yield error.message
        return
    has = {"layers": shape.blocks, "hidden": shape.hidden, "kv_groups": shape.kv_groups, "ffn": shape.ffn}
    for name, wanted in stage.target.items():
        yield from _too_many(name, wanted, has[name], 0, "in the model")


def _too_many(name: str, wanted: int, there: int, kept: int, what: str) -> Iterator[str]:
    """A sentence where more is wanted than `there` is without `kept`; none where the settings do not say."""
    if there and wanted > there - kept:
        yield f"{name} = {wanted}, and there are {there} {what}: take {there - kept} or less"


def _whole_groups(stage: Layerwise, shape: Shape) -> Iterator[str]:
    """N:M groups must divide the inputs of every matrix: the hidden state and the feed-forward units."""
    for level in stage.sparsities:
        groups = nm_pattern(level)
        for columns in (shape.hidden, shape.ffn) if groups else ():
            if groups and columns % groups.columns:
                yield (
                    f'"{level}" needs whole groups of {groups.columns} columns, but a matrix has {columns} inputs: '
                    "choose a group size that divides them, or a fraction such as 0.5"
                )
                return


def _reconstruction(stage: Reconstruct, shape: Shape, base: Shape, recipe: Recipe) -> Iterator[str]:
    needed, given = stage.held_out + stage.batch, recipe.calibration.sequences
    if given < needed:
        yield f"held_out and batch need {needed} sequences, but calibration.sequences is {given}"
    if (shape.blocks, shape.hidden) != (base.blocks, base.hidden):
        yield "it needs the base's blocks and hidden size, which an earlier stage changed: use distill"


def _after(stage: Stage, shape: Shape) -> Shape:
    """The sizes that `stage` leaves."""
    match stage:
        case Depth():
            return replace(shape, blocks=shape.blocks - stage.remove)
        case Width():
            return replace(shape, ffn=_ffn_after(stage, shape.ffn), kv_groups=shape.kv_groups - stage.kv_groups)
        case Shear():
            renamed = {{"layers": "blocks"}.get(name, name): size for name, size in stage.target.items()}
            return replace(shape, **renamed)
    return shape


def _ffn_after(stage: Width, ffn: int) -> int:
    """Feed-forward units that remain; 0 where the settings do not say how many there are."""
    return remaining_units(stage.ffn, ffn) if stage.ffn is not None and ffn else ffn


def remaining_units(ffn: float | int, units: int) -> int:
    """The remaining units of `units`; raises RecipeError if `ffn` leaves none or all."""
    width = ffn if isinstance(ffn, int) else round(units * (1 - ffn) / MULTIPLE) * MULTIPLE
    if not 0 < width < units:
        raise RecipeError(
            f"ffn = {ffn} would leave {width} of the model's {units} feed-forward units; "
            f"allowed: a fraction to remove, or a multiple of {MULTIPLE} below {units} to keep"
        )
    return width
