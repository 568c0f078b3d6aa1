"""Removes feed-forward units and whole KV groups of attention heads, the same number of each from every block.

While later blocks are pruned, what is removed is zero in the rowwise layers; it is cut out of what is saved.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused, RecipeError
from pruning.model.blocks import Blocks, weight_of
from pruning.model.weights import Overlay, parameters, write_file
from pruning.passes.gradients import Moments
from pruning.passes.observation import observing
from pruning.passes.statistics import Gram, InputMean, InputStatistics, Statistic
from pruning.passes.sweep import BlockView, Note
from pruning.recipe.options import Width
from pruning.stages.context import Model, Place, seconds, unloaded
from pruning.stages.layerwise.prune import block_file, naming
from pruning.stages.structured.groups import Group, attention, feed_forward, local_linears
from pruning.stages.structured.surgery import cut, refuse_misfit, with_heads, with_width
from pruning.techniques.fluctuation import FLAP, fluctuation, fold
from pruning.techniques.importance import AnyImportance, SecondOrder, Taylor, remove
from server.artifact.checkpoint.lineage import Step

logger = logging.getLogger(__name__)

MULTIPLE = 32
"""Feed-forward widths are multiples of this, which every runtime's kernels like."""


def apply(stage: Width, model: Model, place: Place) -> tuple[Model, Step]:
    """Remove the units of least importance; raises before any work where the result could not be loaded."""
    blocks = place.blocks(model)
    config, sizes = plan(stage, model.config, blocks)
    importance = stage.importance
    moments = place.moments(blocks, importance.powers) if isinstance(importance, Taylor) else None
    visit = NarrowBlock(importance, blocks, sizes, place.folder, moments)
    notes = place.sweep(blocks).visit(visit, "narrowing", visit.runs)
    source = Overlay(model.source, [block_file(place.folder, index) for index in range(len(blocks))])
    options = msgspec.to_builtins(stage)
    step = Step(
        technique=options.pop("kind"),
        options=options | {"sizes": {group.rowwise: size for group, size in sizes.items()}},
        sparsity={},
        seconds=seconds(notes) + round(moments.seconds if moments else 0, 1),
        parameters=parameters(source)[0],
    )
    return Model(config, source), step


def check(stage: Width, config: dict[str, Any], place: Place) -> dict[str, Any]:
    """The configuration afterwards; raises before any work where the result could not be loaded."""
    result, sizes = plan(stage, config, unloaded(config))
    group, width = list(sizes.items())[-1]
    if isinstance(stage.ffn, float) and width != group.units * (1 - stage.ffn):
        logger.warning(
            "ffn = %g of %d units: %d stay, the nearest multiple of %d", stage.ffn, group.units, width, MULTIPLE
        )
    return result


def plan(stage: Width, config: Mapping[str, Any], blocks: Blocks) -> tuple[dict[str, Any], dict[Group, int]]:
    """The configuration afterwards, and the units that stay of each group; attention comes first, as in the block."""
    sizes: dict[Group, int] = {}
    result = dict(config)
    if stage.kv_groups:
        group = attention(blocks, stage.plan, config)
        columns = weight_of(local_linears(blocks, 0)[group.rowwise]).shape[1]
        if stage.kv_groups >= group.units:
            raise RecipeError(f"kv_groups = {stage.kv_groups} would leave none of the model's {group.units} KV groups")
        sizes[group] = group.units - stage.kv_groups
        result = with_heads(result, columns, group.units, sizes[group])
    if stage.ffn is not None:
        group = feed_forward(blocks, stage.plan)
        sizes[group] = _width(stage.ffn, group.units)
        result = with_width(result, group.units, sizes[group])
    refuse_misfit(blocks, result, sizes)
    return result, sizes


def _width(ffn: float | int, units: int) -> int:
    """The units that stay of `units`; raises RecipeError where `ffn` leaves none or all."""
    width = ffn if isinstance(ffn, int) else round(units * (1 - ffn) / MULTIPLE) * MULTIPLE
    if not 0 < width < units:
        raise RecipeError(
            f"ffn = {ffn} would leave {width} of the model's {units} feed-forward units; "
            f"it is a fraction to remove, or the multiple of {MULTIPLE} below {units} that stays"
        )
    return width


class NarrowBlock:
    """A visit that removes units and leaves `folder`/block-NNNN.safetensors behind."""

    def __init__(
        self,
        importance: AnyImportance,
        blocks: Blocks,
        sizes: Mapping[Group, int],
        folder: Path,
        moments: Moments | None,
    ) -> None:
        self._importance = importance
        self._blocks = blocks
        self._sizes = sizes
        self._folder = folder
        self._moments = moments
        self.runs = 0 if moments else len(sizes) + 1
        """Forwards of each block and batch."""

    def __call__(self, view: BlockView) -> Note:
        """Choose, make up for what goes, save, and pass on the states; notes the seconds."""
        start = monotonic()
        linears = local_linears(self._blocks, view.index)
        prefix = f"{self._blocks.path}.{view.index}."
        tensors: dict[str, Tensor] = {}
        for group, size in self._sizes.items():
            with naming(f"{prefix}{group.rowwise}"):
                kept = self._keep(view, group, linears, size)
            tensors |= {f"{prefix}{name}": tensor for name, tensor in cut(group, linears, kept).items()}
        write_file(block_file(self._folder, view.index), tensors)
        if self.runs:
            view.advance()
        return {"seconds": monotonic() - start}

    def _keep(self, view: BlockView, group: Group, linears: Mapping[str, nn.Module], size: int) -> Tensor:
        """The units of `group` that stay, in order."""
        if isinstance(self._importance, SecondOrder):
            return _compensated(view, group, linears[group.rowwise], size, self._importance.damping)
        if isinstance(self._importance, FLAP):
            return _steadied(view, group, linears[group.rowwise], size, self._importance.damping)
        assert self._moments is not None
        total = torch.zeros(group.units)
        for name in (*group.colwise, group.rowwise):
            moments = self._moments.of(f"{self._blocks.path}.{view.index}.{name}.weight", linears[name])
            weight = weight_of(linears[name])
            if name == group.rowwise:
                weight, moments = weight.T, {power: moment.T for power, moment in moments.items()}
            total += self._importance.units(weight, moments, group.units)
        return largest(total, size)


def _compensated(view: BlockView, group: Group, linear: nn.Module, size: int, damping: float) -> Tensor:
    """Remove units from the rowwise `linear`, whose other columns make up for them; returns the units that stay."""
    gram, weight = _observed(view, group, linear, (Gram,))[Gram], weight_of(linear)
    factor = gram.inverse_factor(damping).double()
    weight[:, gram.dead] = 0
    kept = remove(weight, factor.T @ factor, group.units, group.units - size)
    weight.copy_(weight.bfloat16())  # what is stored, so that later blocks see just that
    return kept


def _steadied(view: BlockView, group: Group, linear: nn.Module, size: int, damping: float) -> Tensor:
    """Remove the units that fluctuate least; the bias, or else the other columns, take over their mean."""
    weight, bias = weight_of(linear), linear._parameters.get("bias")
    observed = _observed(view, group, linear, (InputMean, Gram) if bias is None else (InputMean,))
    inputs = observed[InputMean]
    kept = largest(fluctuation(weight, inputs.variance, group.units), size)
    gone = torch.ones(group.units, dtype=torch.bool).index_fill(0, kept, False)
    columns = gone.repeat_interleave(weight.shape[1] // group.units)
    if bias is None:
        fold(weight, columns, inputs.mean, observed[Gram].only(~columns).inverse_moment(damping))
    else:
        bias.data += (weight[:, columns].double() @ inputs.mean[columns]).to(bias.dtype)
        bias.data.copy_(bias.data.bfloat16())
        weight[:, columns] = 0
    weight.copy_(weight.bfloat16())
    return kept


def _observed(view: BlockView, group: Group, linear: nn.Module, needs: tuple[type[Statistic], ...]) -> InputStatistics:
    """The statistics of what the rowwise `linear` of `group` reads, with all that was removed before it gone."""
    with observing({group.rowwise: linear}, needs) as observed:
        view.run()
    if group.rowwise not in observed:
        raise ModelRefused(f"{group.rowwise} of block {view.index} is never reached by the calibration data")
    return observed[group.rowwise]


def largest(importance: Tensor, size: int) -> Tensor:
    """The `size` units of largest `importance` [units], in order; of equals the higher."""
    return importance.argsort(stable=True)[len(importance) - size :].sort().values
