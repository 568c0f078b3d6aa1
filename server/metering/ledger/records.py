"""What the ledger is told and what it answers: plain values, no database.

A reply is an opening, any number of counts, and one settlement; only the settlement moves the totals.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from server.errors import SecateurError

Outcome = Literal["stop", "length", "budget", "client_gone", "error", "server_shutdown", "recovered", "rejected"]
OUTCOMES: tuple[Outcome, ...] = (
    "stop", "length", "budget", "client_gone", "error", "server_shutdown", "recovered", "rejected",
)  # fmt: skip
Period = Literal["day", "month"]
Kind = Literal["input", "cached", "output"]
KINDS: tuple[Kind, ...] = ("input", "cached", "output")


class LedgerUnavailable(SecateurError):
    """The ledger cannot be written (disk full, locked): nothing may be served that cannot be counted."""

    status = 503
    reason = "ledger"

    def __init__(self, reason: str) -> None:
        super().__init__("The usage ledger cannot be used now; try again later.", code="ledger_unavailable")
        self.args = (f"The usage ledger cannot be used ({reason}).",)  # for logs: callers learn nothing of the inside


class Usage(Struct, frozen=True):
    """Tokens of one reply, as the engine counted them; `cached` is a part of `prompt`, as in OpenAI's usage."""

    prompt: int = 0
    cached: int = 0
    output: int = 0


class Limits(Struct, frozen=True):
    """The tokens, prompts and replies together, that a skill may use; None is without end. Days are UTC's."""

    day: int | None = None
    month: int | None = None

    def of(self, period: Period) -> int | None:
        """One of the two."""
        return self.day if period == "day" else self.month


class Opening(Struct, frozen=True):
    """A reply about to begin: its prompt, the most tokens it may have, and the budgets that both must fit."""

    request_id: str
    skill: str
    model: str
    prompt: int
    wanted: int = 0
    limits: Limits = Limits()
    revision: str = ""
    key_id: str = ""
    idempotency: str | None = None
    """What stays the same when a client repeats a request; no two rows have the same."""


class Known(Struct, frozen=True):
    """The row that an Idempotency-Key belongs to already; `outcome` is None while that reply is under way."""

    request_id: str
    outcome: Outcome | None
    usage: Usage


class Admission(Struct, frozen=True):
    """What became of an opening: `granted` tokens for the reply, or none because of a budget or a known key."""

    granted: int
    day: str
    """YYYY-MM-DD, UTC: the day, and by it the month, whose budgets the reply counts in however long it takes."""
    refused: Period | None = None
    known: Known | None = None


class Settlement(Struct, frozen=True):
    """A reply that ended; `skill` and `day` are those of its opening, `duration` and `first_token` seconds."""

    request_id: str
    usage: Usage
    outcome: Outcome
    skill: str = ""
    day: str = ""
    duration: float = 0.0
    first_token: float | None = None


class Totals(Struct, frozen=True):
    """Sums over all closed rows."""

    tokens: Mapping[tuple[str, str, str], int]
    """(skill, model, type) -> tokens; type is `input` (cached ones included), `cached` or `output`."""
    requests: Mapping[tuple[str, str, str], int]
    """(skill, model, outcome) -> requests."""


class Spent(Struct, frozen=True):
    """Tokens of one skill in one period: `used` by closed replies, `reserved` by those under way."""

    skill: str
    period: str
    """YYYY-MM-DD or YYYY-MM."""
    used: int
    reserved: int
