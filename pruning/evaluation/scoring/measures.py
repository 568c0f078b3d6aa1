"""The measures of a model on a task, and its scores: one value per item and measure, in the order of the items."""

import msgspec

NLL = "nll"
ACCURACY = "accuracy"
EXACT = "exact"
CONTAINED = "contained"
PERPLEXITY = "perplexity"
KL = "kl"
AGREEMENT = "agreement"
FLIPS = "flips"
ERROR = "error"
ACCURACY_ALONE = "accuracy_alone"
CONTAINED_ALONE = "contained_alone"
CONTAINED_QUOTED = "contained_quoted"
SUPPORTED = "supported"
SUPPORTED_QUOTED = "supported_quoted"
HIT_1, HIT_3, HIT_5 = "hit@1", "hit@3", "hit@5"
RECIPROCAL_RANK = "mrr"
OFF_TOPIC_REFUSED = "off_topic_refused"
ON_TOPIC_REFUSED = "on_topic_refused"

LABELS = {
    NLL: "negative log-likelihood, nats per token",
    ACCURACY: "accuracy",
    EXACT: "greedy answer equals the reference",
    CONTAINED: "greedy answer contains the reference",
    PERPLEXITY: "perplexity",
    KL: "KL divergence from the base, nats per token",
    AGREEMENT: "greedy reply equals the base's",
    FLIPS: "choices that differ from the base's",
    ERROR: "1 - accuracy",
    ACCURACY_ALONE: "accuracy without knowledge",
    CONTAINED_ALONE: "greedy answer without knowledge contains the reference",
    CONTAINED_QUOTED: "greedy answer in quotations contains the reference",
    SUPPORTED: "share of a reply's words supported by what it cites",
    SUPPORTED_QUOTED: "share of a quoted reply's words supported by what it cites",
    HIT_1: "right passage first",
    HIT_3: "right passage among three",
    HIT_5: "right passage among five",
    RECIPROCAL_RANK: "mean reciprocal rank of the right passage",
    OFF_TOPIC_REFUSED: "off-topic questions refused",
    ON_TOPIC_REFUSED: "on-topic questions refused",
}

ALONE = {ACCURACY: ACCURACY_ALONE, CONTAINED: CONTAINED_ALONE, CONTAINED_QUOTED: CONTAINED_ALONE}
"""Measure with knowledge -> the one without it."""

FEW_TOKENS = 2000
"""On fewer tokens of a text, perplexities differ by chance."""


def few_tokens(tokens: int) -> str:
    """The clause that warns of a perplexity on fewer than `FEW_TOKENS`; empty for more."""
    if tokens >= FEW_TOKENS:
        return ""
    return f"; warning: {tokens:,} tokens are too few to compare models by, take {FEW_TOKENS:,} or more"


class Scores(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The scores of one model; equal models, tasks and runners give equal scores."""

    measures: dict[str, tuple[float, ...]]
    """The values of each measure, one per item."""
    answers: tuple[str, ...] = ()
    """The text that each item generated or chose; empty if the task does neither."""
    replies: tuple[tuple[int, ...], ...] = ()
    """The token ids of the greedy replies."""
    chosen: tuple[int, ...] = ()
    """The index of the chosen option of each item; empty without multiple choice."""
