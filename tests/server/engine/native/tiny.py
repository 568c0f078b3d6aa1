"""Tiny random models of every supported family, packed in any layout, and transformers' own logits."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from server.artifact.checkpoint.layouts import Balanced, Dense, Layout, Quantised, Unstructured
from server.artifact.checkpoint.packing import pack, pack_unstructured
from server.artifact.checkpoint.quantised import pack_quantised, unpack_quantised

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
TYPES = ["sliding_attention", "full_attention"]
GEMMA = {"query_pre_attn_scalar": 24, "sliding_window": 5, "layer_types": TYPES}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, llama3 rope": {"rope_parameters": LLAMA3},
    "llama, linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
    "llama, yarn rope": {"rope_parameters": YARN},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "llama, pruned": {"intermediate_size": 72, "num_attention_heads": 2, "num_key_value_heads": 1,
                      "num_hidden_layers": 1, "vocab_size": 61},
    "llama, odd": {"hidden_size": 40, "intermediate_size": 52, "head_dim": 24, "num_attention_heads": 5,
                   "num_key_value_heads": 1, "vocab_size": 33},
    "mistral": {"sliding_window": 7},
    "mistral, wide": {"sliding_window": 41},
    "qwen2": {},
    "qwen2, sliding": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {},
    "smollm3": {"num_hidden_layers": 4},
    "smollm3, sliding": {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "use_sliding_window": True,
                         "sliding_window": 9},
    "gemma": {},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": GEMMA,
}  # fmt: skip


def tiny(name: str, **options: Any) -> PreTrainedModel:
    """A random float32 model with bfloat16 values; its norms and biases are random too."""
    torch.manual_seed(0)
    kind = name.split(",")[0]
    config = CONFIG_MAPPING[kind].from_dict({"model_type": kind, **SHAPE, **MODELS.get(name, {}), **options})
    factory: Any = AutoModelForCausalLM
    model = factory.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    assert isinstance(model, PreTrainedModel)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)
            weight.copy_(weight.bfloat16())
    return model


def own_logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """The model's own logits [ids, vocabulary] of a whole text."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


class Packed:
    """An artifact in memory whose matrices are stored in layout `how`.

    The model's own weights are rounded to that layout, so its logits are the expected ones.
    """

    def __init__(self, model: PreTrainedModel, how: str = "bf16") -> None:
        self.path = Path("somewhere")
        self.config = model.config.to_dict()
        self._layouts: dict[str, Layout] = {}
        self._parts: dict[str, dict[str, Tensor]] = {}
        tied = bool(self.config.get("tie_word_embeddings"))
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                if not (tied and name == "lm_head.weight"):
                    self._store(name, weight, how if weight.dim() == 2 else "bf16")

    def layout(self, name: str) -> Layout:
        return self._layouts[name]

    def parts(self, name: str) -> dict[str, Tensor]:
        return self._parts[name]

    def names(self) -> list[str]:
        return sorted(self._parts)

    def _store(self, name: str, weight: Tensor, how: str) -> None:
        kind, _, kept = how.partition(" ")
        if kept:
            weight.copy_(prune(weight, None if kept == "any" else int(kept.partition(":")[0])))
        if kind == "bf16":
            self._layouts[name], self._parts[name] = store(weight.bfloat16(), kept)
            return
        rounded, scales = quantise(weight, 4 if kind == "int4" else 8)
        self._layouts[name], self._parts[name] = pack_quantised(rounded.bfloat16(), scales)
        layout = self._layouts[name]
        assert isinstance(layout, Quantised)
        assert kept != "any" or layout.count or weight.shape[1] < 64
        weight.copy_(unpack_quantised(self._parts[name], layout))


def store(weight: Tensor, kept: str) -> tuple[Layout, dict[str, Tensor]]:
    """A matrix of 16 bits, dense, balanced (`k:64`) or unstructured (`any`)."""
    columns = weight.shape[-1]
    if kept == "any":
        return Unstructured(count=int(weight.count_nonzero()), columns=columns), pack_unstructured(weight)
    if not kept:
        return Dense(), {"values": weight}
    keep = int(kept.partition(":")[0])
    return Balanced(keep=keep, columns=columns), dict(zip(("values", "mask"), pack(weight, keep), strict=True))


def prune(weight: Tensor, keep: int | None) -> Tensor:
    """Keep `keep` random values of every 64 columns; None: a third of all values, and the whole first row."""
    generator = torch.Generator().manual_seed(weight.numel())
    noise = torch.rand(weight.shape, generator=generator)
    if keep is None:
        noise[0] = 0
        return weight * (noise < 1 / 3)
    ranks = torch.cat([run.argsort(1).argsort(1) for run in runs(noise, 64)], dim=1)
    return weight * (ranks < keep)


def runs(matrix: Tensor, width: int) -> list[Tensor]:
    """`matrix` in pieces of `width` columns; the last may have fewer."""
    return [matrix[:, start : start + width] for start in range(0, matrix.shape[1], width)]


def quantise(weight: Tensor, bits: int, group: int = 32) -> tuple[Tensor, Tensor]:
    """The values rounded to the nearest codes, and the scales [rows, groups]."""
    top = 2 ** (bits - 1) - 1
    scales = torch.stack([run.abs().amax(1) / top for run in runs(weight, group)], dim=1).half()
    steps = scales.float().repeat_interleave(group, dim=1)[:, : weight.shape[1]]
    codes = (weight / steps.where(steps != 0, 1)).round().clamp(-top, top)
    return codes * steps, scales
