"""Supported families of decoders: defaults of their `config.json`, and architecture, by `model_type`."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

NORMS = {"before_attention": "input_layernorm", "before_mlp": "post_attention_layernorm"}
FOUR_NORMS = {
    "before_attention": "input_layernorm",
    "after_attention": "post_attention_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
    "after_mlp": "post_feedforward_layernorm",
}
HEAD_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}


class Family(Struct, frozen=True):
    """Defaults and architecture of one `model_type`."""

    defaults: Mapping[str, Any] = {}
    """Settings that a `config.json` may omit."""
    norms: Mapping[str, str] = msgspec.field(default_factory=NORMS.copy)
    one_plus: bool = False
    """Norms multiply by 1 + weight."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of their width."""
    biases: tuple[str, ...] = ()
    """Projections that always have a bias, whatever the configuration says."""
    windows: Literal["none", "all", "typed", "switched"] = "none"
    """Which layers have a sliding window: `typed` follows `layer_types`; `switched` too, if `use_sliding_window`."""
    local_rope: bool = False
    """Layers with a window have their own rope."""


GEMMA = {"hidden_act": "gelu_pytorch_tanh", "head_dim": 256, "tie_word_embeddings": True}
GEMMA_TYPED = {**GEMMA, "sliding_window": 4096, "query_pre_attn_scalar": 256}
FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family({"sliding_window": 4096, "num_key_value_heads": 8}, windows="all"),
    "qwen2": Family({"sliding_window": 4096}, biases=("query", "key", "value"), windows="switched"),
    "qwen3": Family({"sliding_window": 4096, "head_dim": 128}, {**NORMS, **HEAD_NORMS}, windows="switched"),
    "smollm3": Family({"rope_theta": 2e6, "tie_word_embeddings": True, "num_key_value_heads": 4}, windows="switched"),
    "gemma": Family(GEMMA, one_plus=True, scaled_embedding=True),
    "gemma2": Family(
        {**GEMMA_TYPED, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "num_key_value_heads": 4},
        FOUR_NORMS,
        one_plus=True,
        scaled_embedding=True,
        windows="typed",
    ),
    "gemma3_text": Family(
        {**GEMMA_TYPED, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "num_key_value_heads": 4},
        {**FOUR_NORMS, **HEAD_NORMS},
        one_plus=True,
        scaled_embedding=True,
        windows="typed",
        local_rope=True,
    ),
}
