"""The ledger's requests and answers, as plain values without a database.

A reply is one opening, any number of counts and one settlement; only the settlement changes the totals.
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
    """The ledger cannot be written (disk full, locked): what cannot be counted is not served."""

    status = 503
    reason = "ledger"

    def __init__(self, reason: str) -> None:
        super().__init__("The usage ledger cannot be used now; try again later.", code="ledger_unavailable")
        self.args = (f"The usage ledger cannot be used ({reason}).",)  # for logs only: clients see no internals


class Usage(Struct, frozen=True):
    """Tokens of one reply as the engine counted them; `prompt` includes `cached`, as in OpenAI's usage."""

    prompt: int = 0
    cached: int = 0
    output: int = 0


class Limits(Struct, frozen=True):
    """A skill's budgets in prompt plus output tokens per UTC day and month; None is unlimited."""

    day: int | None = None
    month: int | None = None

    def of(self, period: Period) -> int | None:
        """The budget of `period`."""
        return self.day if period == "day" else self.month


class Opening(Struct, frozen=True):
    """A reply about to start: its prompt tokens, the most output tokens `wanted`, and the budgets for their sum."""

    request_id: str
    skill: str
    model: str
    prompt: int
    wanted: int = 0
    limits: Limits = Limits()
    revision: str = ""
    key_id: str = ""
    idempotency: str | None = None
    """Equal for repetitions of one request; unique among rows."""


class Known(Struct, frozen=True):
    """The row that already has this Idempotency-Key; `outcome` is None while its reply is running."""

    request_id: str
    outcome: Outcome | None
    usage: Usage


class Admission(Struct, frozen=True):
    """The answer to an opening: `granted` output tokens, or none because of a budget or a known Idempotency-Key."""

    granted: int
    day: str
    """YYYY-MM-DD, UTC: the day and month whose budgets are charged, however long the reply takes."""
    refused: Period | None = None
    known: Known | None = None


class Settlement(Struct, frozen=True):
    """A finished reply; `skill` and `day` as in its opening, `duration` and `first_token` in seconds."""

    request_id: str
    usage: Usage
    outcome: Outcome
    skill: str = ""
    day: str = ""
    duration: float = 0.0
    first_token: float | None = None


class Totals(Struct, frozen=True):
    """The sums over all closed rows of an instance."""

    tokens: Mapping[tuple[str, str, str], int]
    """(skill, model, type) -> tokens; type is `input` (cached ones included), `cached` or `output`."""
    requests: Mapping[tuple[str, str, str], int]
    """(skill, model, outcome) -> requests."""


class Spent(Struct, frozen=True):
    """Tokens of one skill in one period: `used` by closed replies, `reserved` by running ones."""

    skill: str
    period: str
    """YYYY-MM-DD or YYYY-MM."""
    used: int
    reserved: int
