"""Reads an encoder's directory: configuration, tokenizer, weights, and the files of sentence-transformers."""

import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import tokenizers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from server.errors import ArtifactError

FAMILY = ("albert", "bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
"""Each `model_type` that can be read."""
OFFSET_POSITIONS = ("camembert", "roberta", "xlm-roberta", "mpnet")
"""Families that number positions from `pad_token_id` + 1, so that two rows of the position table serve no token."""
UNBOUNDED = 1 << 20
"""A `model_max_length` from here on means that the tokenizer knows no limit."""
TOKENIZER = "tokenizer.json"
SMALL_FILES = (
    "config.json", TOKENIZER, "tokenizer_config.json", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json",
)  # fmt: skip
"""The files beside weights and pooling that decide a vector."""
QUERY_PROMPTS = ("query", "search_query")
DOCUMENT_PROMPTS = ("document", "passage", "search_document", "corpus")

Pooling = Literal["mean", "cls"]


class Recipe(NamedTuple):
    """How the last hidden states of a text become its vector."""

    max_tokens: int
    """Tokens of a text that are read, special ones included."""
    pooling: Pooling = "mean"
    normalise: bool = True
    query_prompt: str = ""
    """What the model expects before a question, such as `query: `."""
    document_prompt: str = ""
    """What the model expects before a passage."""


def config(path: Path) -> dict[str, Any]:
    """config.json of an encoder; raises ArtifactError for another family or one with code of its own."""
    if not path.is_dir():
        raise ArtifactError(f"{path} is not a directory: name the one with an encoder's config.json")
    read = _settings(path / "config.json", required=True)
    if "auto_map" in read:
        raise ArtifactError(f"{path / 'config.json'} has an `auto_map`: code that comes with a model is never run")
    if read.get("model_type") not in FAMILY:
        kind = read.get("model_type")
        raise ArtifactError(f"{path / 'config.json'}: a {kind} is no encoder that is read; {', '.join(FAMILY)} are")
    return read


def recipe(path: Path, settings: dict[str, Any]) -> Recipe:
    """Pooling, normalisation, prompts and longest text, from the files of sentence-transformers.

    Without modules.json: the mean, normalised. Raises ArtifactError for a module or a pooling that is not known here.
    """
    limits = [int(settings.get("max_position_embeddings", 512)), *_limits(path)]
    if settings["model_type"] in OFFSET_POSITIONS:
        limits[0] -= 2
    prompts = _settings(path / "config_sentence_transformers.json").get("prompts") or {}
    query = next((prompts[name] for name in QUERY_PROMPTS if name in prompts), "")
    document = next((prompts[name] for name in DOCUMENT_PROMPTS if name in prompts), "")
    modules = _modules(path)
    if not modules:
        return Recipe(min(limits), "mean", True, query, document)
    pooling = _pooling(path / modules["Pooling"] / "config.json") if "Pooling" in modules else "mean"
    return Recipe(min(limits), pooling, "Normalize" in modules, query, document)


def tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer, which neither cuts nor pads, and leaves special tokens that a text spells as text."""
    file = path / TOKENIZER
    try:
        library = tokenizers.Tokenizer.from_buffer(file.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{file} is missing: write it with transformers' `tokenizer.save_pretrained`") from None
    except Exception as error:  # the library raises plain Exception
        raise ArtifactError(f"{file} is not a tokenizer: {error}") from None
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    return library


def wrapping(library: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The special ids that the tokenizer puts before and after every text, such as [CLS] and [SEP]."""
    inner = library.encode("a", add_special_tokens=False).ids
    whole = library.encode("a").ids
    start = next((at for at in range(len(whole)) if whole[at : at + len(inner)] == inner), 0)
    return whole[:start], whole[start + len(inner) :]


def weights(path: Path) -> dict[str, Tensor]:
    """All weights by name, mapped from the file or files; raises ArtifactError."""
    found: dict[str, Tensor] = {}
    for file in _weight_files(path):
        try:
            found |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{file} cannot be read: {error}") from None
    return found


def digest(path: Path) -> str:
    """SHA-256 over digest and name of every file that decides the vectors of the encoder in `path`."""
    pooling = sorted(path.glob("*/config.json"))
    small = [path / name for name in SMALL_FILES if (path / name).exists()]
    total = hashlib.sha256()
    for file in sorted([*_weight_files(path), *small, *pooling]):
        try:
            with file.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror}") from None
        total.update(f"{found}  {file.relative_to(path)}\n".encode())
    return total.hexdigest()


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise ArtifactError(f"{path} has no model.safetensors: weights are read in safetensors only")
    return files


def _limits(path: Path) -> list[int]:
    """The longest texts that the model's own files allow, in tokens."""
    told = [
        _settings(path / "sentence_bert_config.json").get("max_seq_length"),
        _settings(path / "tokenizer_config.json").get("model_max_length"),
    ]
    return [int(limit) for limit in told if isinstance(limit, int | float) and 0 < limit < UNBOUNDED]


def _modules(path: Path) -> dict[str, str]:
    """The folder of each module of modules.json, by the last word of its type."""
    file = path / "modules.json"
    if not file.exists():
        return {}
    try:
        listed = msgspec.json.decode(file.read_bytes(), type=list[dict[str, Any]])
        found = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in listed}
    except (OSError, msgspec.DecodeError, KeyError) as error:
        raise ArtifactError(f"{file} is not a list of modules: {error}") from None
    if unknown := found.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise ArtifactError(
            f"{file} names {', '.join(sorted(unknown))}: only Transformer, Pooling and Normalize can be computed"
        )
    return found


def _pooling(file: Path) -> Pooling:
    """The one pooling that is switched on; raises ArtifactError for others than mean and cls."""
    told = _settings(file, required=True)
    modes = sorted(name.removeprefix("pooling_mode_") for name, on in told.items() if "pooling_mode_" in name and on)
    modes = modes or [str(told.get("pooling_mode", "mean"))]
    if modes in (["mean_tokens"], ["mean"]):
        return "mean"
    if modes in (["cls_token"], ["cls"]):
        return "cls"
    raise ArtifactError(f"{file}: pooling by {' and '.join(modes)} is not known; mean_tokens and cls_token are")


def _settings(file: Path, *, required: bool = False) -> dict[str, Any]:
    """The JSON object in `file`; empty if it is missing and not `required`."""
    if not required and not file.exists():
        return {}
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ArtifactError(f"{file} is missing: an encoder's directory needs it") from None
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{file} cannot be read as a JSON object: {error}") from None
