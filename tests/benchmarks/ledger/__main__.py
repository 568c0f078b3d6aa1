"""`make bench-ledger`: opening a reply, a scrape and the admin page on a ledger of ten million rows.

On SQLite and, where it is installed, on a PostgreSQL of this machine; the rows are made by SQL.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import randrange

from prometheus_client import CollectorRegistry, generate_latest

from server.metering.budgets import KeyIds
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Limits, Opening, Settlement, Usage
from server.metering.metrics import LedgerCollector
from server.metering.summary import summarise
from tests.benchmarks.ledger.rows import KEYS, NOW, SKILLS, fill
from tests.benchmarks.serving.figures import percentile
from tests.support.postgres_server import new_database, running

LIMITS = {f"skill-{index}": Limits(day=10**12, month=10**13) for index in range(SKILLS)}
KEY_LIMITS: Mapping[KeyIds, Limits] = {(f"key-{index}",): Limits(month=10**13) for index in range(KEYS)}
REPLIES = 500
BOUNDS = {"opening": 20, "settling": 20, "scrape": 50, "admin page": 300}
"""The most milliseconds that each may take."""


class Configured:
    """A server's skills, keys and models, as its scrape labels them."""

    def limits(self) -> dict[str, Limits]:
        return LIMITS

    def key_limits(self) -> Mapping[KeyIds, Limits]:
        return KEY_LIMITS

    def answered(self) -> Iterable[tuple[str, str]]:
        return [(f"skill-{index}", f"model-{index % 2}") for index in range(SKILLS)]


def timed(rounds: int, act: Callable[[int], object]) -> list[float]:
    """Milliseconds of each of `rounds` calls."""
    spent = []
    for index in range(rounds):
        started = time.perf_counter()
        act(index)
        spent.append(1000 * (time.perf_counter() - started))
    return spent


def measure(where: str, rows: int) -> dict[str, list[float]]:
    """Milliseconds of each act on the ledger of `rows` rows at `where`."""
    ledger = Ledger(where, instance="replica-0", clock=lambda: NOW)
    registry = CollectorRegistry()
    registry.register(LedgerCollector(ledger, Configured()))

    names = [f"chatcmpl-{1_000_000_000 + randrange(rows)}-new{index}" for index in range(REPLIES)]

    def opening(index: int) -> None:
        skill = f"skill-{index % SKILLS}"
        key = f"key-{index % SKILLS * (KEYS // SKILLS)}"
        asked = Opening(names[index], skill, "model-0", 100, 300, LIMITS[skill], key_id=key, idempotency=f"i-{index}",
                        key_limits=Limits(month=10**13))  # fmt: skip
        assert ledger.open(asked).result().granted == 300

    def settling(index: int) -> None:
        key = f"key-{index % SKILLS * (KEYS // SKILLS)}"
        skill = f"skill-{index % SKILLS}"
        ledger.settle(Settlement(names[index], Usage(100, 0, 20), "stop", skill, "2026-11-30", 1.0, 0.1, key)).result()

    found = {
        "opening": timed(REPLIES, opening),
        "settling": timed(REPLIES, settling),
        "scrape": timed(20, lambda _: generate_latest(registry)),
        "admin page": timed(20, lambda _: summarise(ledger, LIMITS, NOW, KEY_LIMITS)),
    }
    ledger.close()
    return found


def report(name: str, found: Mapping[str, Sequence[float]]) -> None:
    """Print a line for each act: median, 99th percentile, and the bound."""
    for act, spent in found.items():
        middle, high = percentile(spent, 50), percentile(spent, 99)
        print(f"{name:<12}{act:<12}median {middle:8.2f} ms   p99 {high:8.2f} ms   bound {BOUNDS[act]} ms", flush=True)


def main() -> None:
    """Fill and measure each kind of ledger."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=10_000_000)
    options.add_argument("--keep", type=Path, help="where the SQLite file is made, or used as it is if it exists")
    options.add_argument("--only", choices=("sqlite", "postgres"))
    arguments = options.parse_args()
    if arguments.only != "postgres":
        with tempfile.TemporaryDirectory() as folder:
            file = arguments.keep or Path(folder) / "usage.sqlite3"
            on("SQLite", str(file), arguments.rows, make=not file.exists())
    if arguments.only != "sqlite":
        with running() as socket:
            if socket is None:
                print("PostgreSQL is not installed: tests/install does it")
            else:
                on("PostgreSQL", new_database(socket), arguments.rows)


def on(name: str, where: str, rows: int, *, make: bool = True) -> None:
    """Fill the ledger at `where` with `rows` if `make`, and print what it costs."""
    if make:
        started = time.monotonic()
        fill(where, rows)
        print(f"{name}: {rows:,} rows in {time.monotonic() - started:.0f} s", flush=True)
    report(name, measure(where, rows))


if __name__ == "__main__":
    main()
