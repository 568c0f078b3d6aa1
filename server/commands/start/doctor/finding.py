"""What a check found."""

from collections.abc import Callable, Iterator
from typing import Literal

from msgspec import Struct

from server.errors import SecateurError

State = Literal["ok", "warning", "failed"]


class Finding(Struct, frozen=True):
    """The outcome of one check; `remedy` says what to do unless it is ok."""

    check: str
    state: State
    found: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def findings(name: str, check: Check) -> Iterator[Finding]:
    """What `check` finds; an error that it raises is its last finding, under `name`."""
    try:
        yield from check()
    except SecateurError as error:
        yield Finding(name, "failed", str(error), "Correct what the message names.")
