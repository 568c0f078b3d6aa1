"""The merges of a byte-pair encoding, and tokenizer.json rewritten without some of its tokens.

A kept token keeps the tokens it is merged from, so a text of kept tokens is encoded as before: all merges on its way
remain, in their order.
"""

import re
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

from pruning.errors import ModelRefused


class Merges:
    """The merges of a parsed tokenizer.json's model; raises ModelRefused unless it is a plain byte-pair encoding."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        affixes = any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
        if "merges" not in model or affixes:
            raise ModelRefused("the tokenizer is not a plain byte-pair encoding, so no token can be removed")
        self._ranks = {pair: rank for rank, pair in enumerate(map(pair_of, model["merges"]))}
        self._byte_fallback = bool(model.get("byte_fallback"))

    def ranked(self) -> dict[str, int]:
        """Each merged token with its rank, 0 for the first merge."""
        ranks: dict[str, int] = {}
        for (left, right), rank in self._ranks.items():
            ranks.setdefault(left + right, rank)
        return ranks

    def parts(self, token: str) -> tuple[str, ...]:
        """The two tokens that the last merge into `token` joins; empty if it is not made by merging."""
        found = self._before_the_last(token)
        return found if len(found) == 2 and found in self._ranks else ()

    def falls_into(self, token: str) -> tuple[str, ...]:
        """The tokens that replace `token` in a text once it is removed: its parts, or the bytes of a character."""
        if len(token) == 1:
            return tuple(f"<0x{byte:02X}>" for byte in token.encode()) if self._byte_fallback else ()
        return self._before_the_last(token)

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

    def _before_the_last(self, token: str) -> tuple[str, ...]:
        """The symbols of `token` after all its merges but the one that completes it."""
        symbols = list(token)
        while len(symbols) > 2:
            rank, at = min((self._ranks.get(pair, len(self._ranks)), at) for at, pair in enumerate(pairwise(symbols)))
            if rank == len(self._ranks):
                break
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return tuple(symbols)


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
    added = [token for token in definition.get("added_tokens") or [] if token["id"] in number]
    result["added_tokens"] = [token | {"id": number[token["id"]]} for token in added]
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


def byte_tokens(definition: Mapping[str, Any]) -> list[str]:
    """The byte tokens; raises ModelRefused if they do not cover every string."""
    model, step = definition["model"], definition.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    if any(step.get("type") == "ByteLevel" for step in steps):
        return [token for token in model["vocab"] if len(token) == 1]
    if model.get("byte_fallback"):
        return [token for token in model["vocab"] if re.fullmatch("<0x[0-9A-F]{2}>", token)]
    raise ModelRefused("the tokenizer has no byte tokens, so a smaller vocabulary could not encode every string")


def added_tokens(definition: Mapping[str, Any]) -> list[str]:
    """The added tokens of a parsed tokenizer.json."""
    return [token["content"] for token in definition.get("added_tokens") or []]


def named_tokens(definition: Mapping[str, Any]) -> list[int | str]:
    """Tokens, by id or text, that other parts of a parsed tokenizer.json name: unknown, padding, and around a text."""
    unknown, padding = definition["model"].get("unk_token"), definition.get("padding") or {}
    found: list[int | str] = [unknown] if unknown else []
    found += [padding["pad_id"]] if padding else []
    waiting = [definition.get("post_processor") or {}]
    while waiting:
        processor = waiting.pop()
        waiting += processor.get("processors", ())
        found += [id for token in (processor.get("special_tokens") or {}).values() for id in token["ids"]]
        found += [processor[key][1] for key in ("sep", "cls") if key in processor]
    return found


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
