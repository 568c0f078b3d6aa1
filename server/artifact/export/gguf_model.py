"""The GGUF metadata and tensor names of Llama-like models.

llama.cpp's `llama` applies RoPE to neighbouring pairs of a head's dimensions, transformers to the two halves, so the
rows of queries and keys are reordered. Its `qwen2` and `qwen3` use halves too.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import torch
from torch import Tensor

from server.errors import ExportError

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""llama.cpp's architecture for each supported `model_type`."""
ROPE = ("default", "linear", "llama3")


class Shape(NamedTuple):
    """The sizes of a model, from config.json."""

    architecture: Any
    blocks: int
    width: int
    units: int
    heads: int
    kv_heads: int
    head_size: int
    context: int
    theta: float
    epsilon: float
    rope: Mapping[str, Any]


def shape_of(path: Path, config: Mapping[str, Any]) -> Shape:
    """The sizes in `config`; raises ExportError for a model that llama.cpp would compute differently."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ExportError(f"{path} is a {kind} model, and only {', '.join(ARCHITECTURES)} are written as GGUF yet")
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})  # as transformers reads them
    rope.setdefault("rope_type", rope.get("type", "default"))
    turned = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    refusals = {
        f"its activation is {config.get('hidden_act')}, not silu": config.get("hidden_act", "silu") != "silu",
        f"its rope_type is {rope['rope_type']}": rope["rope_type"] not in ROPE,
        "it rotates only a part of each head": turned != 1.0,
        "its attention looks back over a window": _windowed(config),
    }
    if found := [why for why, holds in refusals.items() if holds]:
        raise ExportError(f"{path} cannot be written as GGUF: {found[0]}, which llama.cpp computes differently")
    heads = int(config["num_attention_heads"])
    return Shape(
        architecture=ARCHITECTURES[kind],
        blocks=int(config["num_hidden_layers"]),
        width=int(config["hidden_size"]),
        units=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or config["hidden_size"] // heads),
        context=int(config["max_position_embeddings"]),
        theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        epsilon=float(config["rms_norm_eps"]),
        rope=rope,
    )


def describe(writer: Any, shape: Shape) -> None:
    """Write the sizes into the header of `writer`."""
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.units)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    if shape.rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(shape.rope["factor"]))


def tensor_names(path: Path, names: list[str], shape: Shape) -> dict[str, str]:
    """llama.cpp's name of each weight; raises ExportError for a weight unknown to it."""
    table = gguf.get_tensor_name_map(shape.architecture, shape.blocks)
    found = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    if lost := [name for name, other in found.items() if other is None]:
        raise ExportError(f"{path} cannot be written as GGUF: llama.cpp has no place for {lost[0]}")
    return {name: str(other) for name, other in found.items()}


def rows(name: str, tensor: Tensor, shape: Shape) -> Tensor:
    """The rows of a weight `name`, or of its codes or scales, in llama.cpp's order."""
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
    if heads is None or shape.architecture != gguf.MODEL_ARCH.LLAMA:
        return tensor
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def frequencies(shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """The RoPE frequency factors of Llama 3, as (name, tensor); nothing for other kinds of RoPE."""
    if shape.rope.get("rope_type") != "llama3":
        return
    low, high = float(shape.rope["low_freq_factor"]), float(shape.rope["high_freq_factor"])
    factor, trained = float(shape.rope["factor"]), float(shape.rope["original_max_position_embeddings"])
    powers = torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size
    turns = trained * (shape.theta**-powers) / (2 * math.pi)  # full turns within the trained length
    share = ((turns - low) / (high - low)).clamp(0, 1)
    yield "rope_freqs.weight", 1 / ((1 - share) / factor + share)


def _windowed(config: Mapping[str, Any]) -> bool:
    """Whether any layer attends only within a sliding window."""
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", True)
    return bool(used and window and window < config["max_position_embeddings"])
