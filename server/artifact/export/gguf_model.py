"""The GGUF metadata and tensor names of Llama-like models.

llama.cpp's `llama` applies RoPE to neighbouring pairs of a head's dimensions, transformers to the two halves, so the
rows of queries and keys are reordered. Its `qwen2`, `qwen3` and `gemma3` use halves too. Gemma's norms multiply by
1 + weight, and are stored as that sum.
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
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
"""llama.cpp's architecture for each supported `model_type`."""
ROPE = ("default", "linear", "llama3")
LOCAL, GLOBAL = "sliding_attention", "full_attention"
PERIOD = 6
"""In llama.cpp's `gemma3` the last of every 6 layers attends to the whole text."""
LOCAL_THETA = 1e4
"""RoPE's base in the other layers there."""


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
    window: int | None = None
    """Tokens that the layers with a sliding window look back over."""


def shape_of(path: Path, config: Mapping[str, Any]) -> Shape:
    """The sizes in `config`; raises ExportError for a model that llama.cpp would compute differently."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ExportError(f"{path} is a {kind} model, and only {', '.join(ARCHITECTURES)} are written as GGUF yet")
    gemma = kind == "gemma3_text"
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})  # as transformers reads them
    rope = dict(rope.get(GLOBAL, rope))
    rope.setdefault("rope_type", rope.get("type", "default"))
    turned = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    refusals = {
        f"its rope_type is {rope['rope_type']}": rope["rope_type"] not in ROPE,
        "it rotates only a part of each head": turned != 1.0,
        **(_gemma_refusals(config) if gemma else _llama_refusals(config)),
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
        window=int(config["sliding_window"]) if gemma else None,
    )


def _llama_refusals(config: Mapping[str, Any]) -> dict[str, bool]:
    """What llama.cpp computes differently, and whether `config` asks for it; of all but Gemma."""
    return {
        f"its activation is {config.get('hidden_act')}, not silu": config.get("hidden_act", "silu") != "silu",
        "its attention looks back over a window": _windowed(config),
    }


def _gemma_refusals(config: Mapping[str, Any]) -> dict[str, bool]:
    """What llama.cpp computes differently, and whether `config` asks for it; of Gemma 3."""
    layers = list(config.get("layer_types") or [])
    wanted = [LOCAL if (index + 1) % PERIOD else GLOBAL for index in range(len(layers))]
    local = (config.get("rope_parameters") or {}).get(LOCAL, {}).get("rope_theta", LOCAL_THETA)
    activation = config.get("hidden_activation", "gelu_pytorch_tanh")
    return {
        f"its activation is {activation}, not gelu_pytorch_tanh": activation != "gelu_pytorch_tanh",
        f"its layers with a whole view are not each {PERIOD}th": layers != wanted,
        f"layers with a window have {local} as RoPE's base, not {LOCAL_THETA:g}": local != LOCAL_THETA,
        "its attention is not scaled by the size of a head": config.get("query_pre_attn_scalar") != config["head_dim"],
        "it caps logits": bool(config.get("final_logit_softcapping") or config.get("attn_logit_softcapping")),
        "its attention is bidirectional": bool(config.get("use_bidirectional_attention")),
        "its head is not its embedding": config.get("tie_word_embeddings") is False,
    }


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
    if shape.window:
        writer.add_sliding_window(shape.window)
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
    """The rows of a weight `name`, or of its codes or scales, in llama.cpp's order; norms as it multiplies by them."""
    if shape.architecture == gguf.MODEL_ARCH.GEMMA3 and name.endswith("norm.weight"):
        return tensor.float() + 1
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
