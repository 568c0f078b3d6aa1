"""Sets the wall clock back an hour and forward a day during streams; durations and budgets must not notice."""

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msgspec import Struct

from server.commands.__main__ import main
from tests.exams.client import Read, Server, ask
from tests.support.harness import until

LIMIT = 1000
HOUR = 3600
DAY = 86400


class Jumps(Struct):
    """The ledger after five jumps of the clock."""

    served: int
    refused: int
    negative: int
    """Rows with a negative duration or an end before their beginning."""
    misplaced: int
    """Rows counted in another day than that of their opening."""
    used: tuple[int, ...]
    """Tokens of each of the two days."""
    again: int
    """Requests served on a day with an exhausted budget, after the clock left it and came back."""
    different: int

    @property
    def good(self) -> bool:
        """Whether no duration is negative and each day's budget was used exactly once."""
        once = len(self.used) == 2 and all(LIMIT * 0.9 < tokens <= LIMIT for tokens in self.used)
        return once and not (self.negative + self.misplaced + self.again + self.different)


class Clock:
    """The wall clock of the server's process."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        noon = now.replace(hour=12, minute=0, second=0, microsecond=0)
        self._noon = (noon - now) // timedelta(seconds=1)  # so that no jump of an hour crosses midnight
        self.file = folder / "clock"
        self.set(0)

    def set(self, seconds: int) -> None:
        """Set it to `seconds` after today's noon."""
        beside = self.file.with_suffix(".new")
        beside.write_text(f"{self._noon + seconds:+d}")
        beside.replace(self.file)


def exam(folder: Path, *, requests: int) -> Jumps:
    """Exhaust the budgets of two days while the clock jumps."""
    folder.mkdir(exist_ok=True)
    clock = Clock(folder)
    settings = {"clock": clock.file, "day": LIMIT, "tokens": 60, "step": 0.02}
    server = Server(folder, settings, "tests.exams.servers.jumping_server")
    try:
        server.ready()
        reads = under_way(server, requests, lambda: clock.set(-HOUR))
        again = [ask(server.url) for _ in range(4)]
        clock.set(DAY)
        reads += under_way(server, requests, lambda: clock.set(0))
        again += [ask(server.url) for _ in range(4)]
        clock.set(DAY)
        again += [ask(server.url) for _ in range(4)]
    finally:
        server.kill()
    return judged(folder / "usage.sqlite3", reads, again)


def under_way(server: Server, requests: int, jump: Callable[[], None]) -> list[Read]:
    """Stream `requests` requests at once, and set the clock meanwhile."""
    with ThreadPoolExecutor(requests) as pool:
        running = [pool.submit(ask, server.url) for _ in range(requests)]
        until(lambda: server.metric("secateur_requests_running") > 3)
        jump()
        return [future.result() for future in running]


def judged(path: Path, reads: list[Read], again: list[Read]) -> Jumps:
    """The findings in the ledger."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT day, opened_at, closed_at, coalesce(first_token_seconds, 0), duration_seconds FROM requests"
        ).fetchall()
        used = database.execute("SELECT used FROM budgets WHERE length(period) = 10 ORDER BY period").fetchall()
    statuses = [read.status for read in reads]
    return Jumps(
        statuses.count(200),
        statuses.count(429),
        sum(first < 0 or duration < 0 or closed < opened for _, opened, closed, first, duration in rows),
        sum(day != datetime.fromtimestamp(opened, UTC).strftime("%Y-%m-%d") for day, opened, *_ in rows),
        tuple(tokens for (tokens,) in used),
        sum(read.status != 429 for read in again),
        main(["reconcile", str(path)]),
    )
