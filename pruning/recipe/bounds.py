"""Bounded numbers, and the gates of a result, as recipes and tasks give them."""

import math
import sys
from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Bucket = Annotated[int, Meta(ge=0, le=9)]
AtLeastOne = Annotated[float, Meta(ge=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]

WORST = sys.float_info.max
"""The score recorded in place of a non-finite one, which JSON cannot hold."""


def finite(score: float) -> float:
    """`score` if it is finite, else WORST; lower scores are better."""
    return score if math.isfinite(score) else WORST


class Gates(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits that a pruned model must keep on a task; the worse bound of the figure's 95 % interval counts."""

    max_nll_ratio: AtLeastOne | None = None
    """Maximum mean negative log-likelihood of the expected text, as a multiple of the base's."""
    max_accuracy_drop: Fraction | None = None
    """Maximum accuracy lost against the base, as a fraction: 0.02 is two percentage points."""
    max_exact_drop: Fraction | None = None
    """Maximum share lost of greedy answers that equal the reference; needs `greedy` in the task."""
    max_contained_drop: Fraction | None = None
    """Maximum share lost of greedy answers that contain the reference; needs `greedy` in the task."""
    max_kl: Annotated[float, Meta(ge=0)] | None = None
    """Maximum mean divergence KL(base || model) of the next-token distributions, in nats."""
    max_missed: Fraction | None = None
    """Maximum share of questions whose right passage is not among the first three: 1 - hit@3."""
    max_off_topic_answered: Fraction | None = None
    """Maximum share of off-topic questions that are not refused."""
    max_on_topic_refused: Fraction | None = None
    """Maximum share of on-topic questions that are refused."""
    max_unsupported: Fraction | None = None
    """Maximum share of a free reply's words that no passage it cites supports."""
    max_wrong: Fraction | None = None
    """Maximum share of questions whose right answer is not chosen with knowledge."""
