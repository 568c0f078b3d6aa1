"""Chooses the tokens of a byte-pair encoding to keep, and rewrites tokenizer.json without the others.

Byte tokens are kept, so every string can still be encoded. A kept token keeps the tokens it is merged from, so a text
of kept tokens is encoded as before: all merges on its way remain, in their order.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

from pruning.errors import ModelRefused, RecipeError

MULTIPLE = 64
"""The number of kept tokens is a multiple of this, which suits the kernels of all runtimes."""


class Merges:
    """The merges of a parsed tokenizer.json's model; raises ModelRefused unless it is a plain byte-pair encoding."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        affixes = any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
        if "merges" not in model or affixes:
            raise ModelRefused("the tokenizer is not a plain byte-pair encoding, so no token can be removed")
        self._ranks = {pair: rank for rank, pair in enumerate(map(pair_of, model["merges"]))}

    def parts(self, token: str) -> tuple[str, ...]:
        """The two tokens that the last merge into `token` joins; empty if it is not made by merging."""
        symbols = list(token)
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            rank, at = min((self._ranks.get(pair, len(self._ranks)), at) for at, pair in enumerate(pairs))
            if rank == len(self._ranks):
                return ()
            if len(symbols) == 2:
                return pairs[0]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return ()

    def closure(self, token: str, kept: Collection[str]) -> set[str]:
        """`token` and all tokens it is merged from, except those in `kept`."""
        found: set[str] = set()
        waiting = [token]
        while waiting:
            token = waiting.pop()
            if token not in kept and token not in found:
                found.add(token)
                waiting += self.parts(token)
        return found


def choose(
    definition: Mapping[str, Any], named: Iterable[str], counts: Mapping[str, int], keep: int | None
) -> set[str]:
    """The tokens of a parsed tokenizer.json to keep: a multiple of 64, at most `keep`.

    First byte tokens, added tokens and those `named`; then by descending `counts` in the text, each with the tokens it
    is merged from, if there is room; then unused ones of lowest id, up to the multiple. Raises RecipeError if `keep` is
    too small or nothing would be removed.
    """
    merges, ids = Merges(definition["model"]), ids_of(definition)
    kept: set[str] = set()
    for token in [*_bytes(definition), *_added(definition), *named]:
        kept |= merges.closure(token, kept)
    needed = len(kept)
    used = set(kept)
    for token in counts:
        used |= merges.closure(token, used)
    size = _round_up(min(len(used), keep or len(used)))
    if size >= len(ids):
        raise RecipeError(
            f"vocabulary would remove none of the {len(ids)} tokens: choose a text that uses fewer, or set keep"
        )
    if needed > size:
        raise RecipeError(
            f"keep = {size} is too small: {needed} tokens are single bytes, special, or named by the model's files; "
            f"keep at least {_round_up(needed)}"
        )
    for token in sorted(ids, key=lambda token: (-counts.get(token, 0), ids[token])):
        if len(kept) == size:
            break
        more = merges.closure(token, kept)
        if len(kept) + len(more) <= size:
            kept |= more
    return kept


def without_others(definition: Mapping[str, Any], number: Mapping[int, int]) -> dict[str, Any]:
    """A parsed tokenizer.json with only the tokens whose ids are in `number`, which maps them to their new ids."""
    model = dict(definition["model"])
    model["vocab"] = {token: number[id] for token, id in model["vocab"].items() if id in number}
    model["merges"] = [
        merge
        for merge in model["merges"]
        if all(token in model["vocab"] for token in (*pair_of(merge), "".join(pair_of(merge))))
    ]
    result = {**definition, "model": model}
    result["added_tokens"] = [token | {"id": number[token["id"]]} for token in definition.get("added_tokens") or []]
    result["post_processor"] = _post_processor(definition.get("post_processor"), number)
    if padding := definition.get("padding"):
        result["padding"] = padding | {"pad_id": number[padding["pad_id"]]}
    return result


def ids_of(definition: Mapping[str, Any]) -> dict[str, int]:
    """The id of each token of a parsed tokenizer.json, added tokens included."""
    added = {token["content"]: token["id"] for token in definition.get("added_tokens") or []}
    return {**definition["model"]["vocab"], **added}


def pair_of(merge: str | list[str]) -> tuple[str, str]:
    """The two tokens of a merge, which older files write as one string with a space."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _bytes(definition: Mapping[str, Any]) -> list[str]:
    """The byte tokens; raises ModelRefused if they do not cover every string."""
    model, step = definition["model"], definition.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    if any(step.get("type") == "ByteLevel" for step in steps):
        return [token for token in model["vocab"] if len(token) == 1]
    if model.get("byte_fallback"):
        return [token for token in model["vocab"] if re.fullmatch("<0x[0-9A-F]{2}>", token)]
    raise ModelRefused("the tokenizer has no byte tokens, so a smaller vocabulary could not encode every string")


def _added(definition: Mapping[str, Any]) -> list[str]:
    """The added tokens and the unknown token."""
    unknown = definition["model"].get("unk_token")
    return [token["content"] for token in definition.get("added_tokens") or []] + ([unknown] if unknown else [])


def _post_processor(processor: dict[str, Any] | None, number: Mapping[int, int]) -> dict[str, Any] | None:
    """The part of tokenizer.json that adds tokens around a text, with renumbered ids."""
    if processor is None:
        return None
    result = dict(processor)
    if "processors" in processor:
        result["processors"] = [_post_processor(inner, number) for inner in processor["processors"]]
    if tokens := processor.get("special_tokens"):
        result["special_tokens"] = {
            name: token | {"ids": [number[id] for id in token["ids"]]} for name, token in tokens.items()
        }
    for key in ("sep", "cls"):
        if key in processor:
            result[key] = [processor[key][0], number[processor[key][1]]]
    return result


def _round_up(count: int) -> int:
    """`count` rounded up to a multiple of 64."""
    return -(-count // MULTIPLE) * MULTIPLE
