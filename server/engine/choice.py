"""Every automatic choice carries its reason, and whoever made it can show both.

Choices are shown at start-up, in `/v1/models` and as metric labels; nothing here decides anything."""

from msgspec import Struct


class Choice(Struct, frozen=True):
    """What was chosen (`kernel`) for what (`subject`), and one sentence that says why (`reason`)."""

    subject: str
    kernel: str
    reason: str
