"""`python -m tests.exams.hostile.credentials.keys`: guesses keys on both listeners, then reloads and exports.

Each guess must be counted, few answered as guesses, all accounted for in the audit log, and a correct key let through.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from server.metering.audit import chain
from server.metering.audit.chain import Entry
from server.metering.ledger.connection import snapshot
from server.skills import api_keys
from server.web.http.throttle import BURST, MOST_ENTRIES, REFILL_SECONDS
from tests.exams.client import PROMPT, Server
from tests.exams.row import Row, show
from tests.server.web.test_listeners import call
from tests.support.harness import KEY

GUESSES = 300
COUNTER = re.compile(r'secateur_auth_failures_total\{listener="(\w+)"\} (\d+)')


class Found(NamedTuple):
    """What one listener answered, and how long its guesses took in seconds."""

    statuses: Counter[int]
    seconds: float
    correct: int
    """The status of a correct key afterwards."""


def key_guessing(guesses: int = GUESSES) -> list[Row]:
    """Guess on both listeners of a server of its own, stop it, and compare its traces."""
    with tempfile.TemporaryDirectory(prefix="secateur-exam-") as name:
        folder = Path(name)
        admin, _ = api_keys.create(folder / "admin.json", [], "", admin="all")
        with running(folder, admin_keys=folder / "admin.json") as server:
            found = {"admin": guess(server, "admin", admin, guesses), "public": guess(server, "public", KEY, guesses)}
            headers = {"Authorization": f"Bearer {admin}"}
            call(server.admin, "/admin/reload", b"", **headers)
            metrics = call(server.admin, "/metrics", None, "GET", **headers).content.decode()
        with snapshot(str(folder / "usage.sqlite3")) as database:
            entries = list(chain.entries(database))
        counted = {listener: int(count) for listener, count in COUNTER.findall(metrics)}
        rows = [row for listener in found for row in judged(listener, found[listener], counted, entries, server)]
    exported = [entry for entry in entries if entry.action in ("usage.export", "reload")]
    who = {entry.who for entry in exported} == {api_keys.digest(admin)[: api_keys.KEY_ID]}
    faults = list(chain.faults(entries))
    leaked = sum("sk-" in str(entry) for entry in entries)
    return [
        *rows,
        Row("a reload and an export", f"{len(exported)} entries", "2, by key id", len(exported) == 2 and who),
        Row("the chain", f"{len(entries)} entries, {len(faults)} faults", "0 faults", not faults),
        Row("entries with a key", str(leaked), "0", not leaked),
    ]


@contextmanager
def running(folder: Path, **settings: object) -> Iterator[Server]:
    """Run a server until the end of the block, and let it stop in good order."""
    server = Server(folder, settings)
    try:
        server.ready()
        yield server
        server.process.terminate()
        server.process.wait(120)
    finally:
        server.kill()


def guess(server: Server, listener: str, correct: str, guesses: int) -> Found:
    """Send wrong keys one after another, then the correct one."""
    started = time.monotonic()
    statuses = Counter(ask(server, listener, f"sk-guess-{number}") for number in range(guesses))
    seconds = time.monotonic() - started
    return Found(statuses, seconds, ask(server, listener, correct))


def ask(server: Server, listener: str, key: str) -> int:
    """The status of one request with this key."""
    headers = {"Authorization": f"Bearer {key}"}
    if listener == "admin":
        return int(call(server.admin, "/admin/usage", None, "GET", **headers).status)
    body: Mapping[str, Any] = PROMPT
    return int(call(server.url, "/v1/chat/completions", dict(body), **headers).status)


def judged(listener: str, found: Found, counted: Mapping[str, int], entries: list[Entry], server: Server) -> list[Row]:
    """The rows of one listener."""
    guesses = found.statuses.total()
    allowed = BURST + int(found.seconds / REFILL_SECONDS) + 1
    refused = [entry for entry in entries if entry.action == f"{listener}.refused"]
    own = [entry for entry in refused if entry.object != "several requests"]
    told = len(own) + sum(int(entry.result.split()[0]) for entry in refused if entry.object == "several requests")
    lines = sum(f"Wrong keys at the {listener} listener" in line for line in server.output)
    throttled = found.statuses[401] + found.statuses[429] == guesses and found.statuses[401] <= allowed
    minutes = 2 + int(found.seconds / 60)
    name = f"{guesses} wrong keys, {listener}"
    answers = f"401: {found.statuses[401]}, 429: {found.statuses[429]}, in {found.seconds:.1f} s"
    few = 0 < len(refused) <= MOST_ENTRIES + minutes and told == guesses
    return [
        Row(name, answers, f"401: at most {allowed}", throttled),
        Row(f"{name}: counter", str(counted.get(listener)), str(guesses), counted.get(listener) == guesses),
        Row(f"{name}: audit log", f"{len(refused)} entries for {told}", f"all {guesses}", few),
        Row(f"{name}: warnings", f"{lines} lines", f"1 to {minutes}", 1 <= lines <= minutes),
        Row(f"{name}: a correct key", str(found.correct), "200", found.correct == 200),
    ]


def main() -> int:
    """Print the rows."""
    return show(key_guessing())


if __name__ == "__main__":
    sys.exit(main())
