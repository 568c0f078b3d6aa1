"""Byte-level BPE: its split patterns and byte alphabet, and the tiktoken encoding that gives the same ids.

tiktoken counts many times faster than the tokenizer; any form it is not known to reproduce raises Unrecognised.
"""

from typing import Any

import tiktoken

# GPT-2's split pattern, as ByteLevel applies it.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# After Digits(individual_digits): a digit is a word by itself, without its space, and ends a run of spaces.
GPT2_DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


class Unrecognised(Exception):
    """A tokenizer whose ids tiktoken is not known to reproduce; the message names the part."""


def byte_alphabet() -> dict[str, int]:
    """The byte of each of GPT-2's 256 letters: printable bytes are themselves, the others U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def build_encoding(tokenizer: dict[str, Any]) -> tiktoken.Encoding:
    """The tiktoken encoding of a parsed tokenizer.json; Unrecognised if it might give other ids.

    A byte that the vocabulary lacks gets an id beyond it: the tokenizer silently drops such bytes.
    """
    model = tokenizer["model"]
    _check_model(model)
    if _normalizer(tokenizer) not in (None, "NFC"):
        raise Unrecognised(f"normalizer {_normalizer(tokenizer)} is not recognised")
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added.values()):
        raise Unrecognised("an added token absorbs spaces or matches whole words only")
    return tiktoken.Encoding(
        "model",
        pat_str=split_pattern(tokenizer["pre_tokenizer"]),
        mergeable_ranks=_ranks(model, set(added)),
        special_tokens={content: token["id"] for content, token in added.items()},
    )


def needs_nfc(tokenizer: dict[str, Any]) -> bool:
    """Whether text is normalised to NFC before it is split."""
    return _normalizer(tokenizer) == "NFC"


def _normalizer(tokenizer: dict[str, Any]) -> str | None:
    return tokenizer["normalizer"] and str(tokenizer["normalizer"]["type"])


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise Unrecognised("it is not a byte-level BPE")
    for option in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise Unrecognised(f"{option} is set")
    products = [model["vocab"]["".join(pair)] for pair in map(_pair, model["merges"])]
    if products != sorted(products):
        raise Unrecognised("merges are not in the order of the ids they produce")
    if len(products) != len(set(products)) and not model.get("ignore_merges"):
        raise Unrecognised("several merges produce the same token")


def _pair(merge: str | list[str]) -> list[str]:
    """The two tokens of a merge: a list or, in older files, one string with a space."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _ranks(model: dict[str, Any], added: set[str]) -> dict[bytes, int]:
    alphabet = byte_alphabet()
    try:
        ranks = {
            bytes(alphabet[letter] for letter in token): rank
            for token, rank in model["vocab"].items()
            if token not in added
        }
    except KeyError as error:
        raise Unrecognised(f"the vocabulary holds {error}, which is not in the byte alphabet") from None
    end = 1 + max(*model["vocab"].values(), *ranks.values())
    missing = [bytes([byte]) for byte in range(256) if bytes([byte]) not in ranks]
    return ranks | {byte: end + i for i, byte in enumerate(missing)}


def split_pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    """The split pattern of a pre-tokenizer, one of the constants above; Unrecognised for any other."""
    match _plain(pre_tokenizer):
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        }:
            return GPT2_DIGITS
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if regex in (LLAMA3, QWEN2, GPT2):
            return regex
    raise Unrecognised("the pre-tokenizer is not recognised")


def _plain(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any]:
    """`pre_tokenizer` with `use_regex` filled in, which older files omit."""
    steps = (pre_tokenizer or {}).get("pretokenizers")
    if steps is not None:
        return {"type": "Sequence", "pretokenizers": [_plain(step) for step in steps]}
    return {"use_regex": True, **(pre_tokenizer or {})}
