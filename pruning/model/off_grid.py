"""The off-grid copy of a base: the same function with weights on no grid, as a model has that was never quantised.

A published file may hold weights that were quantised already: SmolLM2's are of 4 bits, which a quantiser of 4 bits then
keeps without loss. Random scales of the columns of each linear layer are folded into the norm before it, or into the
rows of the layer before it (v before o, up before down). Values are stored in bfloat16, as the base's are.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from pruning.errors import ModelRefused
from server.artifact.checkpoint.lineage import FILE, WEIGHTS
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import CheckpointWriter

SPREAD = 0.3
"""Scales are e^u with u uniform between -SPREAD and SPREAD."""
NOTE = "off-grid copy"
LIKE_LLAMA = "an off-grid copy is made of models with the layers of Llama"
ONE_PLUS = ("gemma",)
"""Prefixes of the types of models whose norms multiply by 1 + weight."""
FEED_FORWARD_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm")
"""Names of the norm before the feed-forward layers; the first that a model has counts."""


def off_grid_digest(digest: str) -> str:
    """The digest of the off-grid copy of the base with this `digest`, derived from it."""
    return hashlib.sha256(f"{NOTE} of {digest}".encode()).hexdigest()


def write_off_grid(base: Artifact, target: Path) -> None:
    """Write the off-grid copy of `base` as a base artifact; raises ModelRefused for a model with other layers."""
    record = base.lineage.base
    with CheckpointWriter(target, packed=False) as writer:
        inside = {name for number in range(_layers(base)) for name in _names(base, number)}
        for name in base.names():
            if name not in inside:
                writer.add(name, base.tensor(name))
        draw = torch.Generator().manual_seed(0)
        for number in range(_layers(base)):
            weights = {name: base.tensor(name).float() for name in _names(base, number)}
            for name, weight in moved(weights, f"model.layers.{number}.", draw, base.config).items():
                writer.add(name, weight.bfloat16())
        for file in sorted(base.path.iterdir()):
            if file.name not in (FILE, WEIGHTS):
                writer.copy(file)
        copy = msgspec.structs.replace(
            record, name=f"{record.name}, {NOTE}", digest=off_grid_digest(record.digest), note=NOTE
        )
        writer.finish(msgspec.structs.replace(base.lineage, base=copy))


def moved(
    weights: Mapping[str, Tensor], layer: str, draw: torch.Generator, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """`weights` of one layer, float32, with random scales moved out of the columns of every linear layer."""
    found = dict(weights)
    offset = 1.0 if str(config.get("model_type", "")).startswith(ONE_PLUS) else 0.0
    attention, feed_forward = f"{layer}self_attn.", f"{layer}mlp."
    before = next(name for name in FEED_FORWARD_NORMS if f"{layer}{name}.weight" in found)
    readers = {
        "input_layernorm": [f"{attention}{name}_proj" for name in "qkv"],
        before: [f"{feed_forward}{name}_proj" for name in ("gate", "up")],
    }
    for norm, linears in readers.items():
        gain = found[f"{layer}{norm}.weight"]
        scales = _scales(len(gain), draw)
        found[f"{layer}{norm}.weight"] = (gain + offset) * scales - offset
        for linear in linears:
            found[f"{linear}.weight"] = found[f"{linear}.weight"] / scales
    scales = _scales(found[f"{feed_forward}down_proj.weight"].shape[1], draw)
    _multiply_rows(found, f"{feed_forward}up_proj", scales)
    found[f"{feed_forward}down_proj.weight"] = found[f"{feed_forward}down_proj.weight"] / scales
    scales = _scales(len(found[f"{attention}v_proj.weight"]), draw)
    _multiply_rows(found, f"{attention}v_proj", scales)
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    each = scales.view(groups, 1, -1).expand(groups, heads // groups, -1).reshape(-1)  # heads of a group share a value
    found[f"{attention}o_proj.weight"] = found[f"{attention}o_proj.weight"] / each
    return found


def _multiply_rows(weights: dict[str, Tensor], linear: str, scales: Tensor) -> None:
    """Multiply the outputs of a linear layer by `scales` [rows], its bias too."""
    weights[f"{linear}.weight"] = weights[f"{linear}.weight"] * scales[:, None]
    if f"{linear}.bias" in weights:
        weights[f"{linear}.bias"] = weights[f"{linear}.bias"] * scales


def _layers(base: Artifact) -> int:
    """The number of layers; raises ModelRefused where config.json does not give it as Llama's does."""
    count = base.config.get("num_hidden_layers")
    if not isinstance(count, int):
        raise ModelRefused(f"{base.path.name} gives no num_hidden_layers: {LIKE_LLAMA}")
    return count


def _names(base: Artifact, number: int) -> list[str]:
    """The weights of one layer; raises ModelRefused where it is not built as Llama's."""
    layer = f"model.layers.{number}."
    names = [name for name in base.names() if name.startswith(layer)]
    attention = [f"{layer}self_attn.{name}_proj.weight" for name in "qkvo"]
    feed_forward = [f"{layer}mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    norms = [f"{layer}input_layernorm.weight"]
    if missing := sorted({*attention, *feed_forward, *norms} - set(names)):
        raise ModelRefused(f"{base.path.name} has no {missing[0]}: {LIKE_LLAMA}")
    return names


def _scales(count: int, draw: torch.Generator) -> Tensor:
    """Random scales [count]."""
    return ((torch.rand(count, generator=draw) * 2 - 1) * SPREAD).exp()
