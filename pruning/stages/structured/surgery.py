"""Cuts units out of a block's weights and adapts the configuration: the only code that changes a shape.

All blocks keep equal sizes, so stock runtimes load the result.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused, RecipeError
from pruning.model import base
from pruning.model.blocks import Blocks, weight_of
from pruning.stages.structured.coupled_layers import CoupledLayers, local_linears

WIDTH_KEYS = ("intermediate_size", "ffn_dim", "n_inner")
"""The keys of config.json that may hold the feed-forward width."""


def cut_layers(group: CoupledLayers, linears: Mapping[str, nn.Module], kept: Tensor) -> dict[str, Tensor]:
    """Weights and biases of `group` with only the units `kept`, bfloat16, by name within the block."""
    tensors = {}
    for name in group.colwise:
        weight = weight_of(linears[name])
        rows = unit_features(kept, weight.shape[0] // group.units)
        tensors[f"{name}.weight"] = _stored(linears[name], weight[rows])
        if (bias := linears[name]._parameters.get("bias")) is not None:
            tensors[f"{name}.bias"] = bias.data[rows]
    weight = weight_of(linears[group.rowwise])
    columns = unit_features(kept, weight.shape[1] // group.units)
    tensors[f"{group.rowwise}.weight"] = _stored(linears[group.rowwise], weight[:, columns])
    if (bias := linears[group.rowwise]._parameters.get("bias")) is not None:
        tensors[f"{group.rowwise}.bias"] = bias.data  # FLAP updates it
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def with_width(config: Mapping[str, Any], old: int, new: int) -> dict[str, Any]:
    """`config` with `new` feed-forward units; raises ModelRefused if it does not state the `old` number."""
    keys = [key for key in WIDTH_KEYS if config.get(key) == old]
    keys = keys or [key for key in WIDTH_KEYS if key in config and config[key] is None]  # GPT-2: None means 4 x hidden
    if keys:
        return {**config, **dict.fromkeys(keys, new)}
    raise ModelRefused(f"config.json does not state the {old} units of the feed-forward layers, so none can be cut")


def with_heads(config: Mapping[str, Any], columns: int, old: int, new: int) -> dict[str, Any]:
    """`config` with `new` of `old` KV groups; `columns` is the width of all query heads before the cut.

    Raises RecipeError, with the allowed numbers, if the remaining heads do not divide the hidden size, as transformers
    requires.
    """
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    allowed = [old - count for count in range(1, old) if hidden % (heads // old * count) == 0]
    if old - new not in allowed:
        raise RecipeError(
            f"kv_groups = {old - new} would leave {heads // old * new} heads in {new} of {old} KV groups, but the "
            f"heads must divide the hidden size {hidden}; allowed: {', '.join(map(str, sorted(allowed))) or 'none'}"
        )
    changed = {"num_attention_heads": heads // old * new, "head_dim": columns // heads}
    if config.get("num_key_value_heads") is not None:
        changed["num_key_value_heads"] = new
    return {**config, **changed}


def refuse_misfit(blocks: Blocks, config: Mapping[str, Any], sizes: Mapping[CoupledLayers, int]) -> None:
    """Raise ModelRefused if a model of `config` has other shapes than `blocks` cut to `sizes` units."""
    expected = {name: tuple(parameter.shape) for name, parameter in blocks.model.named_parameters()}
    for index in range(len(blocks)):
        for group, size in sizes.items():
            cuts = cut_layers(group, local_linears(blocks, index), torch.arange(size, device="meta"))
            expected |= {f"{blocks.path}.{index}.{name}": tuple(tensor.shape) for name, tensor in cuts.items()}
    refuse_other_shapes(config, expected)


class Cut(NamedTuple):
    """What remains of one module: kept outputs (features of an embedding or norm) and inputs; None keeps all."""

    module: str
    outputs: Tensor | None = None
    inputs: Tensor | None = None


def cut_out(network: nn.Module, tensors: Mapping[str, Tensor], cuts: Iterable[Cut]) -> dict[str, Tensor]:
    """`tensors`, the parameters of `network` by name, after `cuts`."""
    result = dict(tensors)
    for path, outputs, inputs in cuts:
        module = network.get_submodule(path)
        for leaf in module._parameters:
            name = f"{path}.{leaf}"
            if name not in result:  # no bias, or tied to a parameter that is cut under its own name
                continue
            axis = outputs_axis(module, result[name])
            if outputs is not None:
                result[name] = result[name].index_select(axis, outputs)
            if inputs is not None and result[name].dim() == 2:
                result[name] = result[name].index_select(1 - axis, inputs)
    return result


def outputs_axis(module: nn.Module, tensor: Tensor) -> int:
    """The axis of `tensor`, a parameter of `module`, that runs over the module's outputs."""
    return 0 if tensor.dim() == 1 or isinstance(module, nn.Linear) else 1  # embeddings and Conv1D: [inputs, outputs]


def with_hidden(config: Mapping[str, Any], columns: int, new: int) -> dict[str, Any]:
    """`config` with `new` hidden dimensions; `columns` is the width of all query heads, which is unchanged."""
    return {**config, "hidden_size": new, "head_dim": columns // config["num_attention_heads"]}


def refuse_other_shapes(config: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelRefused if a model of `config` has other parameter shapes than `expected`."""
    model = base.skeleton(config)
    for name, parameter in model.named_parameters():
        if tuple(parameter.shape) != expected.get(name):
            raise ModelRefused(
                f"config.json cannot describe the smaller model: {name} would be {expected.get(name)}, "
                f"but transformers makes it {tuple(parameter.shape)}"
            )


def unit_features(kept: Tensor, size: int) -> Tensor:
    """The rows or columns of the units `kept`, each a run of `size`."""
    return (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()


def _stored(linear: nn.Module, weight: Tensor) -> Tensor:
    """`weight` [outputs, inputs] in the orientation that `linear` stores."""
    return weight if isinstance(linear, nn.Linear) else weight.T
