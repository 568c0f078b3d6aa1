"""A Llama of two layers with random weights, as an artifact that the real loader and engine run."""

import json
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from transformers import LlamaConfig, LlamaForCausalLM

from server.artifact.checkpoint.digest import weights_digest
from server.artifact.checkpoint.writer import CheckpointWriter
from tests.support.harness import LINEAGE, tokenizer


class Weights(dict[str, torch.Tensor]):
    """Weights by name."""

    def names(self) -> list[str]:
        return list(self)

    def tensor(self, name: str) -> torch.Tensor:
        return self[name]


def tiny_llama(path: Path, seed: int = 0) -> Path:
    """Write the artifact with half of its weights pruned, and a tokenizer of bytes; returns `path`."""
    words = path.parent / "tokenizer"
    tokenizer(words)
    settings: dict[str, Any] = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings, num_attention_heads=4, num_key_value_heads=2, eos_token_id=257))
    weights = Weights()
    with CheckpointWriter(path) as writer:
        for name, weight in model.state_dict().items():
            pruned = torch.where(torch.arange(weight.shape[-1]) % 2 == 0, weight, 0) if "proj" in name else weight
            weights[name] = pruned.to(torch.bfloat16)
            writer.add(name, weights[name])
        for name in ("tokenizer.json", "tokenizer_config.json"):
            writer.copy(words / name)
        writer.text("config.json", json.dumps(model.config.to_dict()))
        steps = (replace(LINEAGE.steps[0], digest=weights_digest(weights)),)
        writer.finish(replace(LINEAGE, steps=steps))
    return path
