"""Writes an artifact's tokenizer into GGUF: tokens, merges, the name of its split pattern, and the chat template.

llama.cpp selects the pattern by name; a tokenizer with any other pattern than the known ones is refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import msgspec

from server.artifact.export import gguf_sentencepiece
from server.errors import ExportError
from server.text import tokenizer_files
from server.text.byte_level import GPT2, GPT2_DIGITS, LLAMA3, QWEN2, Unrecognised, split_pattern
from server.text.tokenizer_files import TokenizerFiles

PATTERN_NAMES = {GPT2: "gpt-2", GPT2_DIGITS: "smollm", LLAMA3: "llama-bpe", QWEN2: "qwen2"}
"""llama.cpp's name for each split pattern; `llama-bpe` implies `ignore_merges`: words that are tokens stay whole."""
NFC = "The tokenizer normalises text to NFC and llama.cpp does not: it encodes other normal forms differently."


def write(writer: Any, path: Path, vocabulary: int) -> list[str]:
    """Write the tokenizer of the artifact at `path`, padded to `vocabulary` tokens; returns notes on differences."""
    files = tokenizer_files.read(path)
    parsed = msgspec.json.decode(files.definition, type=dict[str, Any])
    tokens, types = _tokens(parsed, vocabulary)
    if gguf_sentencepiece.matches(parsed):
        _write_scores(writer, path, parsed, tokens)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pattern_name(path, parsed))
        writer.add_token_merges(
            [merge if isinstance(merge, str) else " ".join(merge) for merge in parsed["model"]["merges"]]
        )
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_add_bos_token(_begins(parsed))
    writer.add_add_space_prefix(False)
    _special(writer, files, {token: id for id, token in enumerate(tokens)})
    return [NFC] if (parsed.get("normalizer") or {}).get("type") == "NFC" else []


def _write_scores(writer: Any, path: Path, parsed: Mapping[str, Any], tokens: list[str]) -> None:
    """Write the scores of a SentencePiece tokenizer; raises ExportError where llama.cpp would encode differently."""
    try:
        scores = gguf_sentencepiece.scores(parsed)
    except Unrecognised as error:
        raise ExportError(f"{path / 'tokenizer.json'} cannot be written as GGUF: {error}") from None
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([scores.get(token, 0.0) for token in tokens])


def _pattern_name(path: Path, parsed: Mapping[str, Any]) -> str:
    """The name that GGUF's `tokenizer.ggml.pre` gives the split pattern; ExportError for an unsupported tokenizer."""
    model = parsed["model"]
    normalizer = (parsed.get("normalizer") or {}).get("type")
    try:
        if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or normalizer not in (None, "NFC"):
            raise Unrecognised("it is not a byte-level BPE")
        if not model["merges"]:
            raise Unrecognised("it has no merges, which llama.cpp requires")
        name = PATTERN_NAMES[split_pattern(parsed["pre_tokenizer"])]
        if bool(model.get("ignore_merges")) != (name == "llama-bpe"):
            raise Unrecognised(f"its ignore_merges differs from llama.cpp's {name}")
    except Unrecognised as error:
        raise ExportError(f"{path / 'tokenizer.json'} cannot be written as GGUF: {error}") from None
    return name


def _tokens(parsed: Mapping[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """Every token by id, and its type; ids without a token become unused placeholders."""
    tokens = [f"[PAD{id}]" for id in range(vocabulary)]
    types = [int(gguf.TokenType.UNUSED)] * vocabulary
    named = [(token, id, gguf.TokenType.NORMAL) for token, id in parsed["model"]["vocab"].items()]
    for added in parsed.get("added_tokens") or []:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        named.append((added["content"], added["id"], kind))
    for token, id, kind in named:
        if id >= vocabulary:
            raise ExportError(f"the token {token!r} has an id beyond the {vocabulary} rows of the model's embeddings")
        tokens[id], types[id] = token, int(kind)
    if gguf_sentencepiece.matches(parsed):
        unknown = parsed["model"].get("unk_token")
        types = [_kind(token, kind, unknown) for token, kind in zip(tokens, types, strict=True)]
    return tokens, types


def _kind(token: str, kind: int, unknown: str | None) -> int:
    """The type of a token of SentencePiece, whose byte tokens and unknown token have their own."""
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return int(gguf.TokenType.BYTE)
    return int(gguf.TokenType.UNKNOWN) if token == unknown else kind


def _begins(parsed: Mapping[str, Any]) -> bool:
    """Whether the tokenizer puts a special token before every text."""
    processor = parsed.get("post_processor") or {}
    steps = processor.get("processors", [processor])
    single = [step.get("single") or [] for step in steps if step.get("type") == "TemplateProcessing"]
    return any("SpecialToken" in template[0] for template in single if template)


def _special(writer: Any, files: TokenizerFiles, ids: Mapping[str, int]) -> None:
    """Write the ids of the special tokens, the ids that end a reply, and the chat template."""
    for name, add in {
        "bos_token": writer.add_bos_token_id,
        "eos_token": writer.add_eos_token_id,
        "unk_token": writer.add_unk_token_id,
        "pad_token": writer.add_pad_token_id,
    }.items():
        if (token := files.special_tokens.get(name, "")) in ids:
            add(ids[token])
    named = ids.get(files.special_tokens.get("eos_token", ""))
    others = sorted(files.stop_ids - {named})
    if named is None and others:
        writer.add_eos_token_id(others.pop())
    if others:
        writer.add_eot_token_id(others[0])
    if files.chat_template:
        writer.add_chat_template(files.chat_template)
