"""The ledger's file is deleted, moved away, or replaced by a copy while the server runs.

`python -m tests.exams.hostile.ledger_deletion` prints its rows; the exit code is 1 if one does not hold.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.exams.client import PROMPT, Server, ask, serving, status
from tests.exams.row import Row, show

SHORT = {**PROMPT, "max_tokens": 1}
REQUESTS = 7
NOTICED = 5.0  # seconds until /readyz must say so without a request
SAID = "while it was open"


def delete(ledger: Path) -> None:
    """`rm usage.sqlite3`."""
    ledger.unlink()


def delete_all(ledger: Path) -> None:
    """`rm usage.sqlite3*`."""
    for path in ledger.parent.glob(f"{ledger.name}*"):
        path.unlink()


def delete_log(ledger: Path) -> None:
    """`rm usage.sqlite3-wal`, which holds the last transactions."""
    ledger.with_name(f"{ledger.name}-wal").unlink()


def move(ledger: Path) -> None:
    """`mv usage.sqlite3 away`."""
    ledger.rename(ledger.with_name("away"))


def replace(ledger: Path) -> None:
    """`cp usage.sqlite3 copy; mv copy usage.sqlite3`."""
    copy = ledger.with_name("copy")
    shutil.copyfile(ledger, copy)
    copy.replace(ledger)


def put_back(ledger: Path) -> None:
    """`mv away usage.sqlite3`."""
    ledger.with_name("away").rename(ledger)


def unready(server: Server) -> float:
    """Seconds until /readyz answers 503, at most twice NOTICED."""
    started = time.monotonic()
    while time.monotonic() - started < 2 * NOTICED and status(f"{server.url}/readyz") != 503:
        time.sleep(0.1)
    return time.monotonic() - started


def attacked(what: str, attack: Callable[[Path], None], repair: Callable[[Path], None] | None = None) -> list[Row]:
    """Attack a server's ledger, ask for replies, and ask again after the repair."""
    with tempfile.TemporaryDirectory(prefix="secateur-exam-") as name, serving(Path(name), tokens=4) as server:
        server.ready()
        ledger = Path(name) / "usage.sqlite3"
        before = ask(server.url, SHORT).status
        attack(ledger)
        seconds = unready(server)
        codes = [ask(server.url, SHORT).status for _ in range(REQUESTS)]
        said = sum(SAID in line for line in server.output)
        rows = [
            Row(what, f"/readyz 503 after {seconds:.1f} s", f"within {NOTICED:.0f} s", seconds <= NOTICED),
            Row(what, f"{codes.count(200)} of {REQUESTS} replies were 200", "0", before == 200 and 200 not in codes),
            Row(what, f"{said} log lines", "1 a minute", said == 1),
        ]
        if repair is not None:
            repair(ledger)
            time.sleep(2)
            after = ask(server.url, SHORT).status
            rows.append(Row(f"{what}, then put back", f"a reply is {after}", "200", after == 200))
    return rows


def ledger_deletion() -> list[Row]:
    """Every attack on a server of its own."""
    return [
        *attacked("rm usage.sqlite3", delete),
        *attacked("rm usage.sqlite3*", delete_all),
        *attacked("rm usage.sqlite3-wal", delete_log),
        *attacked("mv usage.sqlite3 away", move, put_back),
        *attacked("a copy in place of usage.sqlite3", replace),
    ]


def main() -> int:
    """Print the rows."""
    return show(ledger_deletion())


if __name__ == "__main__":
    sys.exit(main())
