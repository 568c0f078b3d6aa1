"""`python -m tests.benchmarks.knowledge speed|quality`: prints a table, measured now."""

import argparse
from pathlib import Path

from tests.benchmarks.knowledge import quality, speed


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks.knowledge", description=__doc__)
    actions = options.add_subparsers(required=True, dest="action")
    fast = actions.add_parser("speed")
    fast.add_argument("--passages", type=int, default=100_000)
    found = actions.add_parser("quality")
    found.add_argument("items", type=Path, nargs="+", help="pairs of `secateur task from-faq`, as .jsonl")
    for action in (fast, found):
        action.add_argument("--folder", type=Path, default=Path("build/bench-knowledge"))
    arguments = options.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.action == "speed":
        tables = [speed.measure(arguments.folder, arguments.passages)]
    else:
        tables = [quality.measure(items, arguments.folder / items.stem) for items in arguments.items]
    for table in tables:
        for line in table:
            print(line, flush=True)


if __name__ == "__main__":
    main()
