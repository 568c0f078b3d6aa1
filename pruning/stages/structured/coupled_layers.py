"""Finds the layers of a block that must lose units together, from the architecture's tensor-parallel plan.

A unit is a run of rows of the plan's `colwise` layers with the matching columns of the `rowwise` layer after them: what
tensor parallelism can place on one device can be cut. A recipe may name the layers instead.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from pruning.errors import ModelRefused
from pruning.model.blocks import Blocks, weight_of

QKV = 3
"""Colwise layers of an attention: queries, keys and values."""


class CoupledLayers(NamedTuple):
    """Layers of a block, by name within it, that share `units` structural units."""

    colwise: tuple[str, ...]
    """Their rows produce the units."""
    rowwise: str
    """Its columns consume the units."""
    units: int


def local_linears(blocks: Blocks, index: int) -> dict[str, nn.Module]:
    """The linear layers of block `index`, by name within the block."""
    start = len(f"{blocks.path}.{index}.")
    return {name[start:].removesuffix(".weight"): linear for name, linear in blocks.linears(index).items()}


def feed_forward(blocks: Blocks, named: Mapping[str, str]) -> CoupledLayers:
    """The feed-forward layers, whose units are single features; raises ModelRefused if the plan has none."""
    linears = local_linears(blocks, 0)
    for colwise, rowwise in _pairs(blocks, named):
        columns = weight_of(linears[rowwise]).shape[1]
        if len(colwise) < QKV and all(weight_of(linears[name]).shape[0] == columns for name in colwise):
            return CoupledLayers(colwise, rowwise, columns)
    raise ModelRefused(_lacking(blocks, "feed-forward layers of one width"))


def attention(blocks: Blocks, named: Mapping[str, str], config: Mapping[str, Any]) -> CoupledLayers:
    """The attention layers, whose units are KV groups: the query heads that share a key and value head, and that head.

    Raises ModelRefused if the plan has no attention with separate layers for queries, keys and values.
    """
    linears = local_linears(blocks, 0)
    heads = config.get("num_attention_heads") or 0
    units = config.get("num_key_value_heads") or heads
    if units and heads % units:
        raise ModelRefused(f"config.json's {heads} heads do not divide into its {units} KV groups: none can be removed")
    for colwise, rowwise in _pairs(blocks, named):
        rows = [weight_of(linears[name]).shape[0] for name in colwise]
        if len(colwise) == QKV and units and not any(count % units for count in rows):
            return CoupledLayers(colwise, rowwise, units)
    raise ModelRefused(_lacking(blocks, "attention with separate layers for queries, keys and values"))


def _pairs(blocks: Blocks, named: Mapping[str, str]) -> list[tuple[tuple[str, ...], str]]:
    """The colwise layers and the rowwise layer of each module that has both, by the plan `named` or the model's own."""
    plan = named or _own_plan(blocks)
    linears = local_linears(blocks, 0)
    unknown = sorted(set(plan) - linears.keys()) if named else []
    if unknown:
        raise ModelRefused(f"the plan names {unknown[0]}, but the linear layers of a block are {', '.join(linears)}")
    found = []
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in plan):
        inside = [name for name in plan if name.rpartition(".")[0] == parent and name in linears]
        colwise = tuple(name for name in inside if plan[name] == "colwise")
        rowwise = [name for name in inside if plan[name] == "rowwise"]
        if colwise and len(rowwise) == 1:
            found.append((colwise, rowwise[0]))
    return found


def _own_plan(blocks: Blocks) -> dict[str, str]:
    """The architecture's own plan for the layers of a block, by name within it."""
    plan: Mapping[str, str] = getattr(getattr(blocks.model, "config", None), "base_model_tp_plan", None) or {}
    return {name.partition(".*.")[2]: kind for name, kind in plan.items() if ".*." in name}


def _lacking(blocks: Blocks, what: str) -> str:
    """The error sentence for a plan without `what`."""
    return (
        f"the tensor-parallel plan of {type(blocks.model).__name__} has no {what}: name the layers in the stage, "
        'as in plan = { "mlp.up" = "colwise", "mlp.down" = "rowwise" }'
    )
