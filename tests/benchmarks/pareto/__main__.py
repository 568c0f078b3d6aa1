"""`make pareto`: measures every candidate of a plan, and writes the page and the plots of both fronts.

`quality` makes and scores what the results lack; `speed` races all candidates in turns on one core of a quiet machine;
`page` only writes and prints. Results are kept after each candidate, so an interrupted run resumes.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from server.errors import SecateurError
from tests.benchmarks.pareto import measuring, results
from tests.benchmarks.pareto.front import page
from tests.benchmarks.pareto.plan import read
from tests.benchmarks.peers.field import RaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pareto", description=__doc__)
    parser.add_argument("what", choices=("quality", "speed", "page"))
    parser.add_argument("plan", type=Path)
    parser.add_argument("--results", type=Path, required=True, help="the JSON file of all figures")
    parser.add_argument("--page", type=Path, help="the page to write, its plots beside the results")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="candidates whose key contains it")
    parser.add_argument("--again", action="store_true", help="score what is scored already")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", default="0", help="the core of the race")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds instead of the clock's: on a busy machine")
    parser.add_argument("--work", type=Path, default=Path("build/pareto"))
    parser.add_argument("--base-cache", type=Path, default=Path("build/base"))
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        plan = read(arguments.plan)
        if arguments.what == "quality":
            measuring.measure_quality(plan, arguments)
        if arguments.what == "speed":
            measuring.measure_speed(plan, arguments)
        found = results.read(arguments.results)
        if arguments.page:
            page.write(plan, found, arguments.page, arguments.results.parent)
        print(page.tables(plan, found))
    except (SecateurError, RaceError) as error:
        print(f"secateur: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
