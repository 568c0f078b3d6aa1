"""SentencePiece's BPE with byte fallback, as Gemma has it, in GGUF: a score for each token instead of merges.

llama.cpp joins the two neighbouring tokens whose union is the token of the highest score, so the scores follow the
ranks of the merges.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from server.text.byte_level import Unrecognised

SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
"""The one normaliser of a tokenizer that llama.cpp reads without a space put before the text."""


def matches(parsed: Mapping[str, Any]) -> bool:
    """Whether a parsed tokenizer.json is of this kind."""
    return bool(parsed["model"].get("byte_fallback"))


def scores(parsed: Mapping[str, Any]) -> dict[str, float]:
    """The score of each token of the model; raises Unrecognised where llama.cpp would encode differently."""
    model, step = parsed["model"], parsed.get("pre_tokenizer")
    split_at_spaces = step is not None and step.get("type") == "Split" and step.get("pattern") == {"String": " "}
    if parsed.get("normalizer") != SPACES or not (step is None or split_at_spaces) or model.get("ignore_merges"):
        raise Unrecognised("it does more than to write spaces as ▁ and merge, unlike Gemma's")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else (merge[0], merge[1]) for merge in model["merges"]]
    order: dict[str, int] = {}
    for first, second in pairs:
        order.setdefault(first + second, len(order))
    ranks = [order[first + second] for first, second in pairs]
    if any(later < earlier for earlier, later in pairwise(ranks)):
        raise Unrecognised("the order of its merges is not one of tokens")
    if lost := _unmerged(model["vocab"], order, set(pairs)):
        raise Unrecognised(f"{lost[0]!r} and {lost[1]!r} do not merge although both together are a token")
    return {token: -float(order.get(token, 0)) for token in model["vocab"]}


def _unmerged(
    vocabulary: Mapping[str, int], made: Mapping[str, int], pairs: set[tuple[str, ...]]
) -> tuple[str, str] | None:
    """Two tokens without a merge whose union is a token that other merges make."""
    for token in made:
        for cut in range(1, len(token)):
            first, second = token[:cut], token[cut:]
            if first in vocabulary and second in vocabulary and (first, second) not in pairs:
                return first, second
    return None
