"""Reads the header of a GGUF file, and refuses what transformers would silently convert to another model."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf import GGUFReader, LlamaFileType
from tokenizers import Tokenizer, pre_tokenizers

from pruning.errors import ModelRefused
from pruning.model.settings import json_text
from server.artifact.checkpoint.lineage import Base
from server.progress import counted

SCALED = ("rope_freqs", "rope_factors")
"""Prefixes of tensors with which llama.cpp scales rotary embeddings."""
REMEDY = "start from the model's Hugging Face directory"
DIGIT_SPLITTERS = ("smollm", "starcoder", "refact", "command-r")
"""GGUF pre-tokenizers that split digits one by one, which transformers' conversion loses."""


class Header:
    """Metadata and tensor names of the GGUF file `path`.

    Raises ModelRefused for a damaged header, and for scaled rotary embeddings, which transformers does not read from
    GGUF: it would compute with other angles.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            reader = GGUFReader(path)
        except (IndexError, ValueError, KeyError) as error:
            raise ModelRefused(f"{path} cannot be read as a model: its header is damaged ({error})") from error
        self._fields = reader.fields
        self._tensors = [str(tensor.name) for tensor in reader.tensors]
        for name in self._fields:
            scaled = name.endswith(".rope.scaling.type") and self._text(name) != "none"
            if scaled or name.endswith(".rope.scale_linear"):
                raise ModelRefused(f"{path} scales its rotations ({name}), which is not read from GGUF: {REMEDY}")
        if found := next((name for name in self._tensors if name.startswith(SCALED)), None):
            raise ModelRefused(f"{path} scales its rotations (by {found}), which is not read from GGUF: {REMEDY}")

    def refuse_left_out(self, places: int) -> None:
        """Raise ModelRefused where the file has more tensors than the converted model has `places` for."""
        if len(self._tensors) > places:
            raise ModelRefused(
                f"{self._path} holds {len(self._tensors)} tensors, but the model that transformers converts it to has "
                f"{places}: tensors without a place, such as undeclared biases, would be lost; {REMEDY}"
            )

    def base(self, digest: str) -> Base:
        """The lineage's record of this base: name, digest, quantisation and licence."""
        known = "general.file_type" in self._fields
        kind = LlamaFileType(self._fields["general.file_type"].contents()).name if known else "GGUF"
        note = f"{kind.removeprefix('MOSTLY_').removeprefix('ALL_')}, dequantised"
        return Base(self._path.stem, digest, note, self._text("general.license") or "unknown")

    def tokenizer_files(self, converted: Any) -> dict[str, str]:
        """The files of transformers' `converted` tokenizer by name, with its digit splitting repaired."""
        tokenizer: Tokenizer = converted.backend_tokenizer
        if self._text("tokenizer.ggml.pre") in DIGIT_SPLITTERS:
            digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
        settings = {**converted.special_tokens_map, "tokenizer_class": "PreTrainedTokenizerFast"}
        if converted.chat_template:
            settings["chat_template"] = converted.chat_template
        return {"tokenizer.json": tokenizer.to_str(pretty=True), "tokenizer_config.json": json_text(settings)}

    def _text(self, name: str) -> str:
        """The text field `name`, or an empty string."""
        return str(self._fields[name].contents()) if name in self._fields else ""


@contextmanager
def own_progress(set_hook: Callable[[Any], Any]) -> Iterator[None]:
    """Show how far transformers is with the weights in our own progress bar; `set_hook` is its `set_tqdm_hook`."""
    stream = sys.stderr

    def shown(factory: Callable[..., Any], given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return counted("reading the weights", given[0], stream) if given else factory(**options)

    before = set_hook(shown)
    try:
        yield
    finally:
        set_hook(before)
