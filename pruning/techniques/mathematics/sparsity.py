"""How much to remove, as recipes say it: a fraction, or N of every M columns; needs no torch."""

import re
from typing import Annotated, NamedTuple

from msgspec import Meta

MAX_COLUMNS = 64
"""The largest M of an N:M pattern."""

Sparsity = (
    Annotated[float, Meta(gt=0, lt=1, description="the fraction of weights to remove")]
    | Annotated[str, Meta(description="N:M keeps N of every M input columns")]
)


class NMPattern(NamedTuple):
    """Keep `keep` weights in each run of `columns` consecutive input columns."""

    keep: int
    columns: int


def nm_pattern(sparsity: float | str) -> NMPattern | None:
    """The pattern of an "N:M" string, or None for a fraction; raises ValueError unless 0 < N < M <= 64."""
    if not isinstance(sparsity, str):
        return None
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", sparsity)
    keep, columns = map(int, match.groups()) if match else (0, 0)
    if not 0 < keep < columns <= MAX_COLUMNS:
        raise ValueError(
            f'sparsity "{sparsity}" is neither a fraction such as 0.5 nor "N:M" with 0 < N < M <= {MAX_COLUMNS}'
        )
    return NMPattern(keep, columns)
