"""What a check found, and how it is printed."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from msgspec import Struct

from server.command_line import print_json
from server.errors import SecateurError

State = Literal["ok", "warning", "failed"]


class Finding(Struct, frozen=True):
    """The outcome of one check; `remedy` says what to do unless it is ok."""

    check: str
    state: State
    found: str
    remedy: str = ""


MARKS: dict[State, str] = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}
Check = Callable[[], Iterator[Finding]]


def findings(name: str, check: Check) -> Iterator[Finding]:
    """What `check` finds; an error that it raises is its last finding, under `name`."""
    try:
        yield from check()
    except SecateurError as error:
        yield Finding(name, "failed", str(error), "Correct what the message names.")


def printed(found: Iterable[Finding], *, as_json: bool) -> list[Finding]:
    """Print each finding as it comes, or all as a JSON array; returns them."""
    kept = []
    for finding in found:
        kept.append(finding)
        if not as_json:
            print(f"{MARKS[finding.state]}  {finding.check}: {finding.found}")
            if finding.remedy:
                print(f"         {finding.remedy}")
            sys.stdout.flush()
    if as_json:
        print_json(kept)
    return kept
