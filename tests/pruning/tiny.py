"""Tiny random models of many architectures, as Hugging Face directories that stock transformers wrote."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from server.artifact.checkpoint.reader import Artifact
from server.engine.runners.transformers_runner import load

ARCHITECTURES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo", "phi3", "gpt2", "gpt_neox", "opt", "starcoder2",
    "stablelm", "bloom",
)  # fmt: skip

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "vocab_size": 257,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 64,
    "pad_token_id": None,
    "bos_token_id": 256,
    "eos_token_id": 256,
}


def config(kind: str, **changes: Any) -> Any:
    """The configuration of a tiny model; transformers maps the sizes to the architecture's own keys."""
    return AutoConfig.for_model(kind, **(SIZES | changes))


def build(kind: str, **changes: Any) -> Any:
    """A tiny random model, float32, in evaluation mode."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(kind, **changes), dtype=torch.float32)  # type: ignore[no-untyped-call]
    return model.eval()


def save(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """Write a tiny random model with a byte-level tokenizer, whose 257th token ends a sequence."""
    build(kind, **changes).bfloat16().save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return folder


def loaded(artifact: Artifact) -> torch.nn.Module:
    """The artifact's model in float32 on the CPU, built by the loader that serves it."""
    return load(artifact, dtype=torch.float32, device=torch.device("cpu"))


def after_last_block(model: Any, path: str, ids: torch.Tensor) -> torch.Tensor:
    """The hidden states of a stock model for `ids` after the last of its blocks, which are at `path`."""
    states: list[torch.Tensor] = []

    def see(_: torch.nn.Module, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hook = model.get_submodule(path)[-1].register_forward_hook(see)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    hook.remove()
    return states[0]
