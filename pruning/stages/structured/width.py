"""The stage `width`: removes feed-forward units and whole KV groups, the same number of each from every block.

While later blocks are pruned, removed units are zero in the rowwise layers; the saved weights are cut.
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
from pruning.stages.block_weights import block_file, naming_weight
from pruning.stages.context import StageContext, StageModel, blocks_without_weights, total_seconds
from pruning.stages.preflight import MULTIPLE, remaining_units
from pruning.stages.structured.coupled_layers import CoupledLayers, attention, feed_forward, local_linears
from pruning.stages.structured.surgery import cut_layers, refuse_misfit, with_heads, with_width
from pruning.techniques.fluctuation import FLAP, fluctuation, fold_mean
from pruning.techniques.importance import AnyImportance, SecondOrder, Taylor
from pruning.techniques.mathematics.removal import remove_units
from server.artifact.checkpoint.lineage import Step

logger = logging.getLogger(__name__)


def apply(stage: Width, model: StageModel, context: StageContext) -> tuple[StageModel, Step]:
    """Remove the units of least importance; writes one file of weights per block, journals the seconds.

    Raises RecipeError or ModelRefused before any work if the result could not be loaded.
    """
    blocks = context.blocks(model)
    config, sizes = plan(stage, model.config, blocks)
    importance = stage.importance
    moments = context.moments(blocks, importance.powers) if isinstance(importance, Taylor) else None
    visit = NarrowBlock(importance, blocks, sizes, context.folder, moments)
    notes = context.sweep(blocks).visit(visit, "narrowing", visit.runs)
    source = Overlay(model.source, [block_file(context.folder, index) for index in range(len(blocks))])
    options = msgspec.to_builtins(stage)
    step = Step(
        technique=options.pop("kind"),
        options=options | {"sizes": {group.rowwise: size for group, size in sizes.items()}},
        sparsity={},
        seconds=total_seconds(notes) + round(moments.seconds if moments else 0, 1),
        parameters=parameters(source)[0],
    )
    return StageModel(config, source), step


def check(stage: Width, config: dict[str, Any], context: StageContext) -> dict[str, Any]:
    """The configuration afterwards; raises RecipeError or ModelRefused if the result could not be loaded."""
    result, sizes = plan(stage, config, blocks_without_weights(config))
    group, width = list(sizes.items())[-1]
    if isinstance(stage.ffn, float) and width != group.units * (1 - stage.ffn):
        logger.warning(
            "ffn = %g of %d units: %d remain, the nearest multiple of %d", stage.ffn, group.units, width, MULTIPLE
        )
    return result


def plan(stage: Width, config: Mapping[str, Any], blocks: Blocks) -> tuple[dict[str, Any], dict[CoupledLayers, int]]:
    """The configuration afterwards, and the remaining units of each group; attention first, as in the block."""
    sizes: dict[CoupledLayers, int] = {}
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
        sizes[group] = remaining_units(stage.ffn, group.units)
        result = with_width(result, group.units, sizes[group])
    refuse_misfit(blocks, result, sizes)
    return result, sizes


class NarrowBlock:
    """A visit that removes units of one block and writes `folder`/block-NNNN.safetensors."""

    def __init__(
        self,
        importance: AnyImportance,
        blocks: Blocks,
        sizes: Mapping[CoupledLayers, int],
        folder: Path,
        moments: Moments | None,
    ) -> None:
        self._importance = importance
        self._blocks = blocks
        self._sizes = sizes
        self._folder = folder
        self._moments = moments
        self.runs = 0 if moments else len(sizes) + 1
        """Forwards of each block per batch."""

    def __call__(self, view: BlockView) -> Note:
        """Choose units, compensate for their removal, save, and pass on the states; notes the seconds."""
        start = monotonic()
        linears = local_linears(self._blocks, view.index)
        prefix = f"{self._blocks.path}.{view.index}."
        tensors: dict[str, Tensor] = {}
        for group, size in self._sizes.items():
            with naming_weight(f"{prefix}{group.rowwise}"):
                kept = self._keep(view, group, linears, size)
            tensors |= {f"{prefix}{name}": tensor for name, tensor in cut_layers(group, linears, kept).items()}
        write_file(block_file(self._folder, view.index), tensors)
        if self.runs:
            view.advance()
        return {"seconds": monotonic() - start}

    def _keep(self, view: BlockView, group: CoupledLayers, linears: Mapping[str, nn.Module], size: int) -> Tensor:
        """The units of `group` to keep, in order; all but Taylor also update the rowwise layer in place."""
        if isinstance(self._importance, SecondOrder):
            return _remove_by_second_order(view, group, linears[group.rowwise], size, self._importance.damping)
        if isinstance(self._importance, FLAP):
            return _remove_by_fluctuation(view, group, linears[group.rowwise], size, self._importance.damping)
        assert self._moments is not None
        total = torch.zeros(group.units)
        for name in (*group.colwise, group.rowwise):
            moments = self._moments.of(f"{self._blocks.path}.{view.index}.{name}.weight", linears[name])
            weight = weight_of(linears[name])
            if name == group.rowwise:
                weight, moments = weight.T, {power: moment.T for power, moment in moments.items()}
            total += self._importance.units(weight, moments, group.units)
        return largest(total, size)


def _remove_by_second_order(
    view: BlockView, group: CoupledLayers, linear: nn.Module, size: int, damping: float
) -> Tensor:
    """Remove units from the rowwise `linear` by second order, compensating in place; returns the kept units."""
    gram, weight = _observe_rowwise(view, group, linear, (Gram,))[Gram], weight_of(linear)
    factor = gram.inverse_factor(damping).double()
    weight[:, gram.dead] = 0
    kept = remove_units(weight, factor.T @ factor, group.units, group.units - size)
    weight.copy_(weight.bfloat16())  # later blocks see the stored values
    return kept


def _remove_by_fluctuation(
    view: BlockView, group: CoupledLayers, linear: nn.Module, size: int, damping: float
) -> Tensor:
    """Remove the units that fluctuate least (FLAP), folding their mean into bias or columns; returns the kept units."""
    weight, bias = weight_of(linear), linear._parameters.get("bias")
    observed = _observe_rowwise(view, group, linear, (InputMean, Gram) if bias is None else (InputMean,))
    inputs = observed[InputMean]
    kept = largest(fluctuation(weight, inputs.variance, group.units), size)
    gone = torch.ones(group.units, dtype=torch.bool).index_fill(0, kept, False)
    columns = gone.repeat_interleave(weight.shape[1] // group.units)
    if bias is None:
        fold_mean(weight, columns, inputs.mean, observed[Gram].only(~columns).inverse_moment(damping))
    else:
        bias.data += (weight[:, columns].double() @ inputs.mean[columns]).to(bias.dtype)
        bias.data.copy_(bias.data.bfloat16())
        weight[:, columns] = 0
    weight.copy_(weight.bfloat16())
    return kept


def _observe_rowwise(
    view: BlockView, group: CoupledLayers, linear: nn.Module, needs: tuple[type[Statistic], ...]
) -> InputStatistics:
    """Statistics of the inputs of the rowwise `linear` of `group`, after all earlier removals."""
    with observing({group.rowwise: linear}, needs) as observed:
        view.run()
    if group.rowwise not in observed:
        raise ModelRefused(f"{group.rowwise} of block {view.index} is never reached by the calibration data")
    return observed[group.rowwise]


def largest(importance: Tensor, size: int) -> Tensor:
    """The `size` units of largest `importance` [units], in order; the higher number of equals."""
    return importance.argsort(stable=True)[len(importance) - size :].sort().values
