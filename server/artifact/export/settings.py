"""config.json for both current transformers and older software: renamed settings appear under both names."""

from collections.abc import Mapping
from typing import Any

NEVER = ("sparsity_config", "compression_config", "quantization_config")
"""Blocks that vLLM and others refuse if they name a sparsity they no longer support."""
KINDS = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
"""The former name of each layer type's RoPE base."""


def for_all(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with older names beside those of transformers 5, and without sparsity and quantisation blocks."""
    values = {key: value for key, value in config.items() if key not in NEVER}
    if "dtype" in values:
        values["torch_dtype"] = values["dtype"]
    rope = values.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return values
    if any(isinstance(value, Mapping) for value in rope.values()):
        older: dict[str, Any] = {KINDS[kind]: part["rope_theta"] for kind, part in rope.items() if kind in KINDS}
        if values.get("model_type") == "gemma3_text":  # rope_scaling applied to its full-attention layers
            older |= _scaling(rope["full_attention"])
    else:
        older = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        older |= _scaling(rope)
    return {**values, **{key: value for key, value in older.items() if key not in values}}


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    """`rope` as the older `rope_scaling`; empty without scaling."""
    if rope.get("rope_type", "default") == "default":
        return {}
    return {"rope_scaling": {key: value for key, value in rope.items() if key != "rope_theta"}}
