"""Writes a random-weight Llama of 3.2 billion parameters or fewer, shard by shard, to measure peak memory.

    python -m tests.reference.random_llama TOKENIZER_DIRECTORY OUTPUT [LAYERS]

The shape is that of Llama 3.2 3B, with all its 28 layers by default (11 make 1.5 billion parameters); the tokenizer is
any smaller one, whose ids are all valid.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, LAYERS, HEADS, KV_HEADS, SIZE, FFN, VOCABULARY = 3072, 28, 24, 8, 128, 8192, 128256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": SIZE,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES = {
    "self_attn.q_proj": (HEADS * SIZE, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * SIZE, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * SIZE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * SIZE),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}


def main() -> None:
    """Write the model's directory."""
    tokenizer, output = Path(sys.argv[1]), Path(sys.argv[2])
    layers = int(sys.argv[3]) if len(sys.argv) > 3 else LAYERS
    output.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    outside = {"model.embed_tokens.weight": random(VOCABULARY, HIDDEN), "model.norm.weight": ones}
    save_file(outside, output / "model-00.safetensors", {"format": "pt"})
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors = {f"{prefix}.{name}.weight": random(*shape) for name, shape in SHAPES.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = ones.clone()
        save_file(tensors, output / f"model-{layer + 1:02}.safetensors", {"format": "pt"})
    (output / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, output / name)


if __name__ == "__main__":
    main()
