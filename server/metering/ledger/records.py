"""The ledger's requests and answers, as plain values without a database.

A reply is one opening, any number of counts and one settlement; only the settlement changes the totals.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from server.errors import SecateurError

Outcome = Literal[
    "stop", "length", "budget", "client_gone", "error", "server_shutdown", "recovered", "rejected",
    "refused", "verbatim",
]  # fmt: skip
OUTCOMES: tuple[Outcome, ...] = (
    "stop", "length", "budget", "client_gone", "error", "server_shutdown", "recovered", "rejected",
    "refused", "verbatim",
)  # fmt: skip
"""`refused`: the skill's knowledge does not cover the question; `verbatim`: a stored answer, both without a model."""
Period = Literal["day", "month"]
Holder = Literal["key", "skill"]
"""Whose budget it is: an API key's or a skill's."""
Kind = Literal["input", "cached", "output"]
KINDS: tuple[Kind, ...] = ("input", "cached", "output")


UsageFrom = Literal["ids", "backend", "pieces"]
"""Who counted a reply's tokens.

`ids`: this server, by id. `backend`: the usage that a backend without token ids reported. `pieces`: such a backend
reported none, so each piece of text counts as a token and the prompt as this server's tokenizer divides it.
"""


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
    """Budgets in prompt plus output tokens per UTC day and month; None is unlimited."""

    day: int | None = None
    month: int | None = None

    def of(self, period: Period) -> int | None:
        """The budget of `period`."""
        return self.day if period == "day" else self.month


class Opening(Struct, frozen=True):
    """A reply about to start: its prompt tokens, the most output tokens `wanted`, and the budgets for their sum.

    `limits` are the skill's; where the key has limits too, both must hold.
    """

    request_id: str
    skill: str
    model: str
    prompt: int
    wanted: int = 0
    limits: Limits = Limits()
    revision: str = ""
    key_id: str = ""
    """The API key that is charged; empty for visitors."""
    idempotency: str | None = None
    """Equal for repetitions of one request; unique among rows."""
    key_limits: Limits = Limits()
    """The budgets of the key, or of `key_ids` together."""
    key_ids: tuple[str, ...] = ()
    """The keys that share `key_limits` since they were rotated, `key_id` among them; empty for `key_id` alone."""
    least: int = 1
    """The fewest tokens to grant; a budget with fewer left refuses the reply. One for each choice."""
    knowledge_tokens: int = 0
    """Tokens of quoted passages, a part of `prompt`."""
    retrieval: float | None = None
    """Seconds that the search took; None for a skill without knowledge."""
    usage_from: UsageFrom = "ids"
    """Who counts if the reply is never settled."""


class Known(Struct, frozen=True):
    """The row that already has this Idempotency-Key; `outcome` is None while its reply is running."""

    request_id: str
    outcome: Outcome | None
    usage: Usage


class Refusal(Struct, frozen=True):
    """The budget that has no token left."""

    holder: Holder
    period: Period


class Admission(Struct, frozen=True):
    """The answer to an opening: `granted` output tokens, or none because of a budget or a known Idempotency-Key."""

    granted: int
    day: str
    """YYYY-MM-DD, UTC: the day and month whose budgets are charged, however long the reply takes."""
    refused: Refusal | None = None
    known: Known | None = None


class Settlement(Struct, frozen=True):
    """A finished reply; `duration` and `first_token` in seconds.

    `skill`, `day` and `key_id` are the row's own, known before it is read, so that its budgets can be locked in order.
    """

    request_id: str
    usage: Usage
    outcome: Outcome
    skill: str = ""
    day: str = ""
    duration: float = 0.0
    first_token: float | None = None
    key_id: str = ""
    usage_from: UsageFrom | None = None
    """Who counted; None keeps what the opening says."""


class Totals(Struct, frozen=True):
    """The sums over all closed rows of an instance."""

    tokens: Mapping[tuple[str, str, str], int]
    """(skill, model, type) -> tokens; type is `input` (cached ones included), `cached` or `output`."""
    requests: Mapping[tuple[str, str, str], int]
    """(skill, model, outcome) -> requests."""


class Spent(Struct, frozen=True):
    """Tokens of one skill or API key in one period: `used` by closed replies, `reserved` by running ones."""

    owner: str
    """The skill's name, or the key's id."""
    period: str
    """YYYY-MM-DD or YYYY-MM."""
    used: int
    reserved: int
