"""What one model scored on one task: a value for each item and measure, in the order of the items."""

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
    NLL: "negative log-likelihood, nats a token",
    ACCURACY: "accuracy",
    EXACT: "greedy answer equals the wanted one",
    CONTAINED: "greedy answer contains the wanted one",
    PERPLEXITY: "perplexity",
    KL: "KL divergence from the base, nats a token",
    AGREEMENT: "greedy reply equals the base's",
    FLIPS: "choices that differ from the base's",
    ERROR: "1 - accuracy",
}
HIGHER_IS_BETTER = (ACCURACY, EXACT, CONTAINED, AGREEMENT)


class Scores(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The values of every item; equal for equal models, tasks and runners."""

    measures: dict[str, tuple[float, ...]]
    """By measure, one value for each item."""
    answers: tuple[str, ...] = ()
    """What the model said or chose, one text for each item, where it said anything."""
    replies: tuple[tuple[int, ...], ...] = ()
    """The ids of greedy replies."""
    chosen: tuple[int, ...] = ()
    """The option that was chosen, where there were options."""
