"""`make exam-faults`: what must hold when processes die, budgets run out, clients vanish and disks are full.

Loopback only, a few minutes; prints a table, and exits with 1 where something does not hold.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.exams import crowd, kill, storage

SKIPPED = "skipped: it needs root, to mount a small file system"


def exams(quick: bool) -> dict[str, Callable[[Path], Any]]:
    """By name; `quick` is what the test suite runs."""
    few = quick
    return {
        "kill -9 while streams run": lambda at: kill.exam(at, rounds=2 if few else 50, streams=8 if few else 16),
        "a budget's last tokens": lambda at: crowd.race(at, requests=50 if few else 200),
        "clients that vanish": lambda at: crowd.vanish(at, clients=40 if few else 1000),
        "disk full": lambda at: storage.full(at, seconds=2 if few else 10),
        "database locked": lambda at: storage.locked(at, seconds=2 if few else 10),
        "what the ledger costs": lambda at: storage.cost(at, runs=1 if few else 5, replies=1 if few else 3),
    }


def main(argv: Sequence[str]) -> int:
    """Run all, or those whose names are given."""
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
    """Each field and its value."""
    if result is None:
        return SKIPPED
    shown = {name: getattr(result, name) for name in result.__struct_fields__}
    if isinstance(result, storage.Cost):
        shown["ratio"] = result.ratio
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
