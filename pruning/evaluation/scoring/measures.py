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
}


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
