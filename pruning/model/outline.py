"""What is known of a base without reading a weight: settings, parameters, chat template; needs no torch."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pruning.errors import ModelRefused
from pruning.model.gguf_scan import Scan, scan
from pruning.model.settings import read_settings
from server.text import tokenizer_files

GGUF_SETTINGS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
}
"""The key of a GGUF file, after its architecture, by the name of the setting in a config.json."""
TYPES = {"gemma3": "gemma3_text"}
"""The `model_type` of a config.json where a GGUF file's architecture is called otherwise."""


class Outline(NamedTuple):
    """A base model as its files describe it."""

    config: dict[str, Any]
    """The settings of config.json, or those of a GGUF file under the same names."""
    parameters: int
    chat_template: str | None
    """Jinja source; None for a model without one."""
    special_tokens: dict[str, str]


def outline(path: Path) -> Outline:
    """The outline of a Hugging Face directory or GGUF file; raises ModelRefused for anything else."""
    if path.is_dir():
        return _directory(path)
    if path.suffix == ".gguf":
        return _gguf(scan(path))
    raise ModelRefused(f"{path} is neither a GGUF file nor a directory with config.json and *.safetensors")


def refuse_files(path: Path) -> None:
    """Raise ModelRefused unless `path` holds safetensors, config.json, tokenizer.json, and valid JSON files."""
    if not list(path.glob("*.safetensors")):
        if list(path.glob("*.bin")):
            raise ModelRefused(f"{path} holds pickled weights (*.bin), which can run code: convert them to safetensors")
        raise ModelRefused(f"{path} holds no *.safetensors")
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).exists():
            raise ModelRefused(f"{path} has no {name}, so it is not a Hugging Face model directory")
    for name in (name for name in tokenizer_files.NAMES if name.endswith(".json")):
        read_settings(path / name)


def refuse_config(config: Mapping[str, Any]) -> None:
    """Raise ModelRefused for a model that brings code or is quantised."""
    if "auto_map" in config:
        raise ModelRefused(f"the model brings its own code ({config.get('model_type')}), which is never run here")
    if config.get("quantization_config") is not None:
        raise ModelRefused("the model is quantised already: start from its 16-bit weights")


def _directory(path: Path) -> Outline:
    refuse_files(path)
    config = read_settings(path / "config.json")
    refuse_config(config)
    files = sorted(path.glob("*.safetensors"))
    read = tokenizer_files.read(path)
    return Outline(config, sum(map(_parameters, files)), read.chat_template, read.special_tokens)


def _parameters(file: Path) -> int:
    """Number of values in a safetensors file, by its header."""
    try:
        with file.open("rb") as content:
            header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise ModelRefused(f"{file} has a damaged header ({error}): download the file again") from error


def _gguf(found: Scan) -> Outline:
    kind = str(found.fields.get("general.architecture"))
    config = {name: found.fields.get(f"{kind}.{key}") for name, key in GGUF_SETTINGS.items()}
    known = {name: value for name, value in config.items() if value is not None}
    known |= {"model_type": TYPES.get(kind, kind), "vocab_size": found.fields.get("tokenizer.ggml.tokens", 0)}
    template = found.fields.get("tokenizer.chat_template")
    named = {f"{name}_token": "" for name in ("bos", "eos", "unk", "pad")}  # their texts are not read here
    return Outline(known, found.parameters, template if isinstance(template, str) else None, named)
