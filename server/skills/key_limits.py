"""Limits of one API key over all skills that it opens, beside each skill's own."""

from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import asdict

Count = Annotated[int, Meta(ge=1)]


class KeyLimits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The limits of an API key; None is unlimited."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Each request counts at its start, as prompt plus longest possible reply."""
    tokens_per_day: Count | None = None
    """Prompt and reply tokens in a day (UTC)."""
    tokens_per_month: Count | None = None
    """Prompt and reply tokens in a calendar month (UTC)."""
    concurrent_replies: Count | None = None

    def __str__(self) -> str:
        """The limits that are set, as in `tokens_per_day=1000 concurrent_replies=2`."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items() if value is not None)


NO_LIMITS = KeyLimits()


class Allowance(Struct, frozen=True):
    """A key's limits, and the ids of the keys that share them since it was rotated, the newest first."""

    limits: KeyLimits = NO_LIMITS
    ids: tuple[str, ...] = ()

    @property
    def owner(self) -> str:
        """The name that counters are kept by: the oldest key's id."""
        return self.ids[-1] if self.ids else ""
