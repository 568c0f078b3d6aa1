"""`make bench-serving`: the cost of HTTP, concurrent streams, a busy neighbour, a skill's cached prompt, a flood.

Every figure is the median of the rounds, with its lowest and highest; the servers compared take turns.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pruning.recipe.sources import locate
from server.errors import SecateurError
from tests.benchmarks.peers.__main__ import GGUF
from tests.benchmarks.peers.field import RaceError
from tests.benchmarks.serving.loads import flood, goodput, neighbour, over_http, warm
from tests.benchmarks.serving.loads.load import LoadError
from tests.benchmarks.serving.options import Options
from tests.benchmarks.serving.report import Line, table

EVENTS: dict[str, Callable[[Options], list[Line]]] = {
    "over-http": over_http.measure,
    "warm": warm.measure,
    "neighbour": neighbour.measure,
    "flood": flood.measure,
    "goodput": goodput.measure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving", description=__doc__)
    parser.add_argument("artifact", type=Path, help="what the server serves")
    parser.add_argument("--event", action="append", choices=EVENTS, help="only this one; can be repeated")
    parser.add_argument("--cores", default="0-1", help="the cores of every server and of its clients: 0, or 0-1")
    parser.add_argument("--threads", type=int, default=1, help="of our engine: one core is left for HTTP")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12, help="of one trial of the search for goodput")
    parser.add_argument("--most", type=int, default=64, help="streams that the search goes up to")
    parser.add_argument("--work", type=Path, default=Path("build/serving"), help="configurations and logs")
    parser.add_argument("--peers", type=Path, default=Path("build/peers"), help="the peers' environments")
    wanted = parser.parse_args(argv)
    events = wanted.event or list(EVENTS)
    given = {name: value for name, value in vars(wanted).items() if name != "event"}
    options = Options(**given, gguf=locate(GGUF))
    try:
        lines = [line for event in events for line in EVENTS[event](options)]
    except (LoadError, RaceError, SecateurError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(lines, f"Cores {options.cores}, {options.rounds} rounds in turns, median (lowest to highest)."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
