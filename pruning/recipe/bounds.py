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
    max_kl: Annotated[float, Meta(ge=0)] | None = None
    """Maximum mean divergence KL(base || model) of the next-token distributions, in nats."""
