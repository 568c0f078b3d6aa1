"""An unwritable ledger, on a full disk or locked by another program; and the cost of metering."""

import sqlite3
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from server.commands.__main__ import main
from tests.exams.client import PROMPT, Read, Server, ask, serving, status
from tests.support.harness import until

SIZE = 6 << 20
SHORT = {**PROMPT, "max_tokens": 1}


class Outage(Struct):
    """What happened while the ledger was unwritable, and afterwards."""

    refused: int
    """Requests answered 503 during the outage, in which /readyz answers 503 too."""
    other: int
    """Requests answered otherwise during the outage."""
    crashed: bool
    cut: int
    """Streams running at its start that did not end properly."""
    wrong: int
    """Replies whose reported usage differs from their row."""
    recovered: float
    """Seconds from its end until a request was served again."""
    different: int

    @property
    def good(self) -> bool:
        """Whether it answered 503, did not crash, lost nothing and recovered by itself."""
        broken = self.other + self.cut + self.wrong + self.different + self.crashed
        return not broken and self.refused > 0 and self.recovered < 5


def outage(folder: Path, ledger: Path, begin: Callable[[], Callable[[], None]], *, seconds: float) -> Outage:
    """Run streams during an outage: `begin` makes the ledger unwritable and returns the function that ends it."""
    with serving(folder, ledger=ledger, step=0.02, tokens=100) as server:
        server.ready()
        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(ask, server.url) for _ in range(4)]
            until(lambda: server.metric("secateur_requests_running") == 4)
            end = begin()
            deadline = time.monotonic() + seconds
            meanwhile: list[int] = []

            def refused() -> bool:
                meanwhile.append(ask(server.url, SHORT).status)
                return status(f"{server.url}/readyz") == 503

            while time.monotonic() < deadline:
                refused()
                time.sleep(0.1)
            until(refused)
            end()
            ended = time.monotonic()
            until(lambda: ask(server.url, SHORT).status == 200)
            recovered = time.monotonic() - ended
            reads = [future.result() for future in running]
        crashed = not server.alive()
    wrong = sum(_wrong(ledger, read) for read in reads)
    return Outage(
        meanwhile.count(503),
        len(meanwhile) - meanwhile.count(503),
        crashed,
        sum(not read.done for read in reads),
        wrong,
        recovered,
        main(["reconcile", str(ledger)]),
    )


def _wrong(ledger: Path, read: Read) -> bool:
    with closing(sqlite3.connect(ledger)) as database:
        columns = "SELECT prompt_tokens, output_tokens FROM requests WHERE request_id = ?"
        row = database.execute(columns, (read.request_id,)).fetchone()
    return read.usage is None or row != (read.usage["prompt_tokens"], read.usage["completion_tokens"])


def full(folder: Path, *, seconds: float) -> Outage | None:
    """A full disk: a small file system filled to its last byte; None if it cannot be mounted."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        return None
    try:

        def fill() -> Callable[[], None]:
            with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(b"x" * 4096)
            return (disk / "filler").unlink

        return outage(folder, disk / "usage.sqlite3", fill, seconds=seconds)
    finally:
        subprocess.run(["umount", disk], check=False)


def locked(folder: Path, *, seconds: float) -> Outage:
    """A locked database: another program holds a write transaction."""
    path = folder / "usage.sqlite3"

    def lock() -> Callable[[], None]:
        other = sqlite3.connect(path, timeout=120, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        def unlock() -> None:
            other.execute("ROLLBACK")
            other.close()

        return unlock

    return outage(folder, path, lock, seconds=seconds)


class Cost(Struct):
    """Throughput in tokens a second, medians of several runs."""

    metered: float
    unmetered: float

    @property
    def ratio(self) -> float:
        """Throughput with metering divided by that without."""
        return self.metered / self.unmetered

    @property
    def good(self) -> bool:
        """Whether metering costs at most 3 %."""
        return self.ratio >= 0.97


def cost(folder: Path, *, runs: int, replies: int, streams: int = 8) -> Cost:
    """Run the same load with and without the ledger's writes, in turns, at 20 ms a step."""
    speeds: dict[bool, list[float]] = {True: [], False: []}
    with _both(folder, streams) as servers:
        for _ in range(runs):
            for metered, server in servers.items():
                speeds[metered].append(speed(server, streams, replies))
    return Cost(statistics.median(speeds[True]), statistics.median(speeds[False]))


@contextmanager
def _both(folder: Path, streams: int) -> Iterator[dict[bool, Server]]:
    settings = {"step": 0.02, "tokens": 100, "slots": streams}
    with serving(folder / "with", **settings) as metered, serving(folder / "without", metered=0, **settings) as free:
        metered.ready()
        free.ready()
        yield {True: metered, False: free}


def speed(server: Server, streams: int, replies: int) -> float:
    """Tokens a second of `streams` clients that each read `replies` replies."""
    tokens, lock = [0], threading.Lock()

    def client() -> None:
        for _ in range(replies):
            read = ask(server.url)
            with lock:
                tokens[0] += len(read.text)

    started = time.monotonic()
    threads = [threading.Thread(target=client) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tokens[0] / (time.monotonic() - started)
