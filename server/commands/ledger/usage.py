"""`secateur usage LEDGER`: prints the ledger's tokens, summed or row by row."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from server.commands.ledger import archive
from server.commands.ledger.source import LEDGER_HELP, opened
from server.errors import ConfigError
from server.metering.ledger.connection import snapshot
from server.metering.usage import (
    GROUPS,
    MOST_ROWS,
    ROW,
    Span,
    archived_through,
    columns,
    grouped,
    rows,
    sequence,
    table,
    written,
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        prog="secateur usage",
        description="Sums by skill, day, model or key; or the rows themselves, from a number on. "
        "`secateur usage archive` moves old rows to files.",
    )
    options.add_argument("ledger", metavar="LEDGER", help=LEDGER_HELP)
    options.add_argument("--by", help=f"any of {', '.join(GROUPS)}, separated by commas (default: skill)")
    options.add_argument("--since", default="", metavar="DAY", help="the first day, YYYY-MM-DD in UTC")
    options.add_argument("--until", default="", metavar="DAY", help="the last day, YYYY-MM-DD in UTC")
    options.add_argument(
        "--after", type=sequence, metavar="N", help="print the rows numbered above N instead of sums; 0 prints all"
    )
    options.add_argument("--format", choices=["table", "csv", "jsonl"], help="default: table for sums, jsonl for rows")
    return options


def main(argv: Sequence[str]) -> int:
    """Print sums or rows, or archive; returns 0. Raises ConfigError if the ledger cannot be read."""
    if argv[:1] == ["archive"]:
        return archive.main(argv[1:])
    arguments = parser().parse_args(argv)
    span = Span(arguments.since, arguments.until)
    if arguments.after is not None and arguments.by is not None:
        raise ConfigError("--after lists rows and --by adds them up: give one of them")
    with opened(arguments.ledger) as ledger:
        if arguments.after is not None:
            print_rows(ledger, arguments.after, span, arguments.format or "jsonl")
        else:
            print_sums(ledger, arguments.by or "skill", span, arguments.format or "table")
    return 0


def print_sums(ledger: str, by: str, span: Span, form: str) -> None:
    """Print the sums grouped by the comma-separated columns `by`."""
    names = [name for name in by.split(",") if name]
    with snapshot(ledger) as database:
        found = grouped(database, names, span)
    if form == "table":
        print(table(columns(names), found))
    else:
        sys.stdout.writelines(written(columns(names), found, "csv" if form == "csv" else "jsonl"))


def print_rows(ledger: str, after: int, span: Span, form: str) -> None:
    """Print the closed rows numbered above `after`."""
    if form == "table":
        raise ConfigError("rows are written as csv or jsonl: choose one with --format")
    sys.stdout.writelines(written(ROW, every_row(ledger, after, span), "csv" if form == "csv" else "jsonl"))


def every_row(ledger: str, after: int, span: Span) -> Iterator[tuple[Any, ...]]:
    """All closed rows numbered above `after`; the ledger is released between batches of MOST_ROWS."""
    with snapshot(ledger) as database:
        through = archived_through(database)
    if after < through:
        print(f"rows numbered up to {through} were archived: those are not listed", file=sys.stderr)
    while True:
        with snapshot(ledger) as database:
            found = rows(database, after, MOST_ROWS, span)
        yield from found
        if len(found) < MOST_ROWS:
            return
        after = found[-1][0]
