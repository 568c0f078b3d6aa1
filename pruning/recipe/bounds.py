"""Numbers within bounds and the limits of results, as recipes and tasks give them."""

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


def finite(score: float) -> float:
    """The score, or the worst there is for one that is not finite, which JSON could not hold; lower is better."""
    return score if math.isfinite(score) else WORST


class Gates(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a result must keep to, judged by the bound of its 95 % interval that is worse."""

    max_nll_ratio: AtLeastOne | None = None
    """Mean negative log-likelihood of the wanted text, as a multiple of the base's."""
    max_accuracy_drop: Fraction | None = None
    """How far below the base's accuracy."""
    max_kl: Annotated[float, Meta(ge=0)] | None = None
    """Mean divergence KL(base || model) of the next-token distributions, in nats."""
