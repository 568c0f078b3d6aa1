"""A tiktoken encoding made from a byte-level BPE tokenizer.json, where that is certain to give the same ids.

Counting with it is many times faster than with the tokenizer; what is not recognised is refused with a reason."""

from typing import Any

import tiktoken

# GPT-2's pattern, as ByteLevel applies it.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits(individual_digits) cuts first: a digit stands alone, without its space, and ends a run of spaces.
GPT2_DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


class Unrecognised(Exception):
    """The tokenizer is of a form whose ids tiktoken is not known to reproduce; the text says which part."""


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def build_encoding(tokenizer: dict[str, Any]) -> tiktoken.Encoding:
    """The encoding of a parsed tokenizer.json; Unrecognised if it might give other ids.

    A byte the vocabulary lacks gets an id from its end on: the tokenizer drops such bytes without a trace."""
    model = tokenizer["model"]
    _check_model(model)
    if _normalizer(tokenizer) not in (None, "NFC"):
        raise Unrecognised(f"normalizer {_normalizer(tokenizer)} is not recognised")
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added.values()):
        raise Unrecognised("an added token takes spaces with it")
    return tiktoken.Encoding(
        "model",
        pat_str=pattern(tokenizer["pre_tokenizer"]),
        mergeable_ranks=_ranks(model, set(added)),
        special_tokens={content: token["id"] for content, token in added.items()},
    )


def wants_nfc(tokenizer: dict[str, Any]) -> bool:
    """Whether text must be brought into the normal form NFC first."""
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
        raise Unrecognised("merges do not come in the order of the ids they make")
    if len(products) != len(set(products)) and not model.get("ignore_merges"):
        raise Unrecognised("several merges make the same token")


def _pair(merge: str | list[str]) -> list[str]:
    """Two tokens, from a list or, in older files, from one string with a space."""
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
        raise Unrecognised(f"the vocabulary holds {error}, which is no letter of the byte alphabet") from None
    end = 1 + max(*model["vocab"].values(), *ranks.values())
    missing = [bytes([byte]) for byte in range(256) if bytes([byte]) not in ranks]
    return ranks | {byte: end + i for i, byte in enumerate(missing)}


def pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    """The regular expression that cuts a text into words, one of those above; Unrecognised for any other."""
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
    """The pre-tokenizer with the default written out that older files leave out."""
    steps = (pre_tokenizer or {}).get("pretokenizers")
    if steps is not None:
        return {"type": "Sequence", "pretokenizers": [_plain(step) for step in steps]}
    return {"use_regex": True, **(pre_tokenizer or {})}
