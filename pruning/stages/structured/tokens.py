"""Which tokens of a byte pair encoding stay, and its tokenizer.json without the others.

The tokens of single bytes stay, so every string that could be encoded still can be. With a token stay those that it is
merged from, so a text whose tokens all stay is encoded just as before: the merges on its way are there, in their order.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

from pruning.errors import ModelRefused, RecipeError

MULTIPLE = 64
"""The number of tokens that stay is a multiple of this, which every runtime's kernels like."""


class Merges:
    """How the model of a tokenizer.json puts its tokens together; raises ModelRefused for what is no such encoding."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        affixes = any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
        if "merges" not in model or affixes:
            raise ModelRefused("the tokenizer is no plain byte pair encoding, so tokens cannot be taken out of it")
        self._ranks = {pair: rank for rank, pair in enumerate(map(pair_of, model["merges"]))}

    def parts(self, token: str) -> tuple[str, ...]:
        """The two tokens that the last merge to `token` joins; none where it is not made by merging."""
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
        """`token` and all that it is merged from, but what is in `kept`."""
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
    """The tokens of a parsed tokenizer.json that stay, a multiple of 64 of them and at most `keep`.

    First those of single bytes, the added ones and those `named`; then by their `counts` in the text, each with what it
    is merged from, as far as there is room; then, to the multiple, unused ones of lowest id. Raises RecipeError where
    `keep` is too small or nothing would go.
    """
    merges, ids = Merges(definition["model"]), ids_of(definition)
    kept: set[str] = set()
    for token in [*_bytes(definition), *_added(definition), *named]:
        kept |= merges.closure(token, kept)
    needed = len(kept)
    used = set(kept)
    for token in counts:
        used |= merges.closure(token, used)
    size = _up(min(len(used), keep or len(used)))
    if size >= len(ids):
        raise RecipeError(
            f"vocabulary would remove none of the {len(ids)} tokens: name a text that uses fewer, or keep"
        )
    if needed > size:
        raise RecipeError(
            f"keep = {size} is too small: {needed} tokens are single bytes, special, or named by the model's files; "
            f"keep at least {_up(needed)}"
        )
    for token in sorted(ids, key=lambda token: (-counts.get(token, 0), ids[token])):
        if len(kept) == size:
            break
        more = merges.closure(token, kept)
        if len(kept) + len(more) <= size:
            kept |= more
    return kept


def without_others(definition: Mapping[str, Any], number: Mapping[int, int]) -> dict[str, Any]:
    """A parsed tokenizer.json whose tokens are those with ids in `number`, and have the ids that it gives them."""
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
    """The id of each token of a parsed tokenizer.json."""
    added = {token["content"]: token["id"] for token in definition.get("added_tokens") or []}
    return {**definition["model"]["vocab"], **added}


def pair_of(merge: str | list[str]) -> tuple[str, str]:
    """The two tokens of a merge, which older files write as one string with a space."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _bytes(definition: Mapping[str, Any]) -> list[str]:
    """The tokens of single bytes; raises ModelRefused where not every string could be encoded with them."""
    model, step = definition["model"], definition.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    if any(step.get("type") == "ByteLevel" for step in steps):
        return [token for token in model["vocab"] if len(token) == 1]
    if model.get("byte_fallback"):
        return [token for token in model["vocab"] if re.fullmatch("<0x[0-9A-F]{2}>", token)]
    raise ModelRefused("the tokenizer knows no bytes, so without some of its tokens not every string could be encoded")


def _added(definition: Mapping[str, Any]) -> list[str]:
    """The added tokens, and the one for what is unknown."""
    unknown = definition["model"].get("unk_token")
    return [token["content"] for token in definition.get("added_tokens") or []] + ([unknown] if unknown else [])


def _post_processor(processor: dict[str, Any] | None, number: Mapping[int, int]) -> dict[str, Any] | None:
    """The part of tokenizer.json that adds tokens around a text, with its ids renumbered."""
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


def _up(count: int) -> int:
    """The next multiple of 64."""
    return -(-count // MULTIPLE) * MULTIPLE
