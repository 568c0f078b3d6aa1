"""`make exam-faults`: kills processes, moves clocks, fills disks and sends hostile clients.

Loopback only, about a quarter of an hour; prints a table and exits with 1 if an expectation fails.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.deploy.test_prometheus import through_kills
from tests.exams import public
from tests.exams.hostile import crowd, nginx, secrets
from tests.exams.outages import clock, kill, replicas, stages, storage
from tests.exams.row import Row

SKIPPED = "skipped: it needs root, to mount a small file system, or a package that tests/install names"

SOME = ("correction", "distill codes")


def exams(quick: bool) -> dict[str, Callable[[Path], Any]]:
    """The exams by name; `quick` selects the sizes of the test suite."""
    few = quick
    return {
        "kill -9 while streams run": lambda at: kill.exam(at, rounds=2 if few else 50, streams=8 if few else 16),
        "kill -9, PostgreSQL": lambda at: kill.on_postgres(at, rounds=2 if few else 20, streams=8 if few else 16),
        "a budget's last tokens": lambda at: crowd.race(at, requests=50 if few else 200),
        "clients that vanish": lambda at: crowd.vanish(at, clients=40 if few else 1000),
        "disk full": lambda at: storage.full(at, seconds=2 if few else 10),
        "database locked": lambda at: storage.locked(at, seconds=2 if few else 10),
        "1,000 slow connections": lambda at: Hostile(public.slow_connections(40 if few else 1000)),
        "64 MB header, 1 GB body": lambda at: Hostile(public.large_requests(0)),
        "clients that read nothing": lambda at: Hostile(public.silent_readers(200 if few else 1000)),
        "10,000 fuzzed bodies": lambda at: Hostile(public.fuzzed_bodies(20 if few else 1000)),
        "SIGTERM, 32 live streams": lambda at: Hostile(public.termination(0)),
        "clock back and forward": lambda at: clock.exam(at, requests=16),
        "nginx in front": lambda at: Hostile(public.behind_nginx(0)) if nginx.installed() else None,
        "planted secrets": secrets.exam,
        "Prometheus and kill -9": through_kills,
        "a key's limits, 2 replicas": lambda at: limits_of_a_key(at, budget=2000 if few else 20_000),
        "each kind of stage": lambda at: stages.exam(at, SOME if few else stages.STAGES, kills=3, growth=0.2),
        "what the ledger costs": lambda at: storage.cost(at, runs=1 if few else 5, replies=1 if few else 3),
    }


class Hostile(Struct):
    """Findings, each with its bound."""

    findings: list[Row]

    @property
    def good(self) -> bool:
        """Whether each is within its bound."""
        return all(finding.held for finding in self.findings)


def limits_of_a_key(folder: Path, budget: int) -> Hostile | None:
    """The exam of two replicas; None without PostgreSQL or Redis."""
    found = list(replicas.exam(folder, budget=budget, seconds=5.0))
    return Hostile(found) if found else None


def main(argv: Sequence[str]) -> int:
    """Run the named exams, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.exams.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the exams' names")
    parser.add_argument("--quick", action="store_true", help="the short version of each")
    arguments = parser.parse_args(argv)
    wanted = {
        name: exam
        for name, exam in exams(arguments.quick).items()
        if not arguments.names or any(part in name for part in arguments.names)
    }
    failed = 0
    print(f"{'fault':<28}{'holds':<8}{'seconds':>8}  figures")
    for name, exam in wanted.items():
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="secateur-exam-", ignore_cleanup_errors=True) as folder:
            result = exam(Path(folder))
        verdict = "-" if result is None else "yes" if result.good else "NO"
        failed += verdict == "NO"
        print(f"{name:<28}{verdict:<8}{time.monotonic() - started:>8.0f}  {figures(result)}", flush=True)
    return 1 if failed else 0


def figures(result: Any) -> str:
    """Each field with its value, as one line."""
    if result is None:
        return SKIPPED
    if isinstance(result, Hostile):
        return "; ".join(f"{finding.figure} (must: {finding.bound})" for finding in result.findings)
    shown = {name: getattr(result, name) for name in result.__struct_fields__}
    if isinstance(result, storage.Cost):
        shown["ratio"] = result.ratio
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
