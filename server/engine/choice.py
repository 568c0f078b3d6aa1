"""What was chosen automatically, and why: shown at start-up, in `/v1/models` and as metric labels."""

from msgspec import Struct


class Choice(Struct, frozen=True):
    """An automatic choice with its reason."""

    subject: str
    """What was chosen, such as "runner"."""
    value: str
    """The chosen option; `kernel` on the wire."""
    reason: str
