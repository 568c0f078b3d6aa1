"""`make exam-attack`: what attackers tried, tried again: each finding with its bound, on real servers over loopback.

Prints a table and exits with 1 if a bound is exceeded.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.exams import public
from tests.exams.hostile import cache_probe, grammars, ledger_deletion, registry_inserts, slow_bodies
from tests.exams.hostile.credentials import keys, logins
from tests.exams.hostile.knowledge import injections, leaks
from tests.exams.hostile.knowledge.pages import PAGES
from tests.exams.row import Row, show


def attacks(quick: bool) -> dict[str, Callable[[], Iterable[Row]]]:
    """The attacks by name; `quick` selects sizes for the test suite."""
    few = quick
    return {
        "prefix cache probed": lambda: probed(4 if few else cache_probe.TRIALS),
        "admin logins forged": lambda: logins.forged_logins(20 if few else logins.FORGED),
        "keys guessed": lambda: keys.key_guessing(40 if few else keys.GUESSES),
        "registry edited": registry_inserts.rows,
        "bodies sent slowly": lambda: slow_bodies.slow_bodies(*((100, 4, 5, 120) if few else (200, 10, 50))),
        "ledger deleted": ledger_deletion.ledger_deletion,
        "hostile grammars": lambda: grammars.hostile_grammars(60.0 if few else grammars.SECONDS),
        "hidden documents": lambda: leaks.rows(*((57, 60) if few else (leaks.TRIES, leaks.PAIRS))),
        "injected pages": lambda: injections.rows(10 if few else len(PAGES)),
        "heads sent slowly": lambda: public.slow_connections(40 if few else 1000),
        "bodies framed and fuzzed": lambda: public.fuzzed_bodies(20 if few else 1000),
        "headers and bodies too large": lambda: public.large_requests(0),
    }


def probed(trials: int) -> Iterable[Row]:
    """The probe of the prefix cache, on a model that `make demo` or the test suite has left in build/."""
    artifact = cache_probe.find_artifact()
    if artifact is None:
        return [Row("the prefix cache was probed", "no model in build/", "run `make demo` first", False)]
    with tempfile.TemporaryDirectory(prefix="secateur-exam-") as folder:
        return cache_probe.rows(artifact, Path(folder), trials)


def main(argv: Sequence[str]) -> int:
    """Run the named attacks, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.exams.attack", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the attacks' names")
    parser.add_argument("--quick", action="store_true", help="the short version of each")
    arguments = parser.parse_args(argv)
    code = 0
    for name, attack in attacks(arguments.quick).items():
        if not arguments.names or any(part in name for part in arguments.names):
            started = time.monotonic()
            print(f"{name}:")
            code |= show(attack())
            print(f"    {time.monotonic() - started:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
