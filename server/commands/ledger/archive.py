"""`secateur usage archive LEDGER --before DAY --output DIR`: moves the rows of past months from the ledger to files."""

import argparse
import getpass
import time
from collections.abc import Sequence
from contextlib import closing
from math import ceil
from pathlib import Path

from server.command_line import Parser
from server.commands.ledger.recording import record
from server.commands.ledger.source import LEDGER_HELP, opened
from server.metering.audit.chain import Event
from server.metering.ledger.archive import moving
from server.metering.usage import Span
from server.progress import Progress


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur usage archive",
        description="Move the rows of past months to files with checksums, also while servers run. Their sums stay in "
        "the ledger, so `secateur usage` and `secateur reconcile` give the same totals. Repeat a command that was "
        "killed: it goes on where it was.",
    )
    options.add_argument("ledger", metavar="LEDGER", help=LEDGER_HELP)
    options.add_argument(
        "--before", required=True, metavar="DAY", help="archive the days before DAY; at most the month's first, in UTC"
    )
    options.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder for the files")
    options.add_argument(
        "--format", choices=["csv", "parquet"], default="csv", help="gzipped CSV, or Parquet (extra `parquet`)"
    )
    options.add_argument(
        "--undelivered", action="store_true", help="also move rows that a webhook's receiver has not had"
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Archive and print what was moved; returns 0. Raises ConfigError."""
    arguments = parser().parse_args(argv)
    before = Span(until=arguments.before).until
    moving.check_day(before, time.time())
    with opened(arguments.ledger) as ledger, closing(moving.opened(ledger)) as database:
        made = moving.prepare(database, arguments.output, before, arguments.format, undelivered=arguments.undelivered)
        if made is None:
            print(f"no reply of a day before {before} is in the ledger: nothing to archive")
            return 0
        selection = made.manifest.selection
        with Progress("archiving", ceil(selection.requests / moving.MOVED)) as progress:
            moved = moving.move(database, made, progress.step)
        print(f"{made.folder}: {selection.requests} rows with {selection.tokens} tokens, {moved} of them moved now")
        print(f"sha256 of its manifest: {made.digest}")
        what = f"{moved} rows of days before {selection.before}, manifest sha256:{made.digest}"
        record(ledger, Event(getpass.getuser(), "usage.archived", made.folder.name, result=what))
        if left := moving.left_open(database, before):
            print(f"{left} replies of these days are not closed yet: they stay, for the next archive")
    return 0
