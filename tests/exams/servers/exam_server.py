"""`python -m tests.exams.servers.exam_server FOLDER [SETTING=VALUE ...]`: the real server, its engine faked.

The runner repeats ten letters, one token each, at `step` seconds a forward pass, so that a client can count its tokens.
`metered=0` leaves the ledger's writes out, to measure their cost. `lease` sets the seconds after which leases of
concurrent replies lapse.
"""

import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from server.commands.serve import run
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Admission, Opening
from server.skills.counters import redis_store, store
from server.web import logs
from tests.support.fakes import ScriptRunner
from tests.support.harness import HELP, OTHER, parts, tokenizer

SCRIPT = "0123456789"


class Unmetered(Ledger):
    """A ledger that grants everything and writes nothing."""

    def open(self, opening: Opening) -> "Future[Admission]":
        return _done(Admission(opening.wanted, "2026-11-25"))

    def count(self, usage: Any) -> "Future[frozenset[str]]":
        return _done(frozenset())

    def settle(self, end: Any) -> "Future[None]":
        return _done(None)


def _done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Cycle(ScriptRunner):
    """Repeats the whole script."""

    def reply(self, sequence: Any) -> int:
        index: int = sequence.generated % len(self.script)
        return self.script[index]


def main(folder: Path, settings: dict[str, str]) -> None:
    """Serve until a signal, with skills limited by the settings."""
    step, tokens, budget = (
        float(settings.pop("step", "0.002")),
        int(settings.pop("tokens", "64")),
        settings.pop("day", ""),
    )
    metered = settings.pop("metered", "1") == "1"
    redis_store.LEASE_SECONDS = float(settings.pop("lease", redis_store.LEASE_SECONDS))
    store.RENEW_SECONDS = redis_store.LEASE_SECONDS / 6
    words = tokenizer(folder / "tiny")
    runner = Cycle(words.encode(SCRIPT), words.vocabulary, delay=step)
    skill = replace(HELP, max_tokens=tokens, tokens_per_day=int(budget) if budget else None)
    numbers: dict[str, Any] = {name: int(value) if value.isdigit() else value for name, value in settings.items()}
    started = time.monotonic()
    made = parts(folder, runner, (skill, OTHER), **{"slots": 16, "max_waiting": 2000, **numbers})
    if not metered:
        made.ledger.close()
        made = replace(made, ledger=Unmetered(made.config.ledger))
    logs.configure(made.config.log, made.config.log_level)
    print(f"opened in {time.monotonic() - started:.3f} s")
    run(made)


if __name__ == "__main__":
    main(Path(sys.argv[1]), dict(pair.split("=", 1) for pair in sys.argv[2:]))
