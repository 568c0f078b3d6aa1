"""`secateur usage LEDGER`: prints the ledger's tokens, summed or row by row."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from server.command_line import Parser
from server.commands.ledger import archive
from server.commands.ledger.source import LEDGER_HELP, opened
from server.errors import ConfigError
from server.metering.ledger.connection import snapshot
from server.metering.usage import (
    EVER,
    GROUPS,
    MOST_ROWS,
    ROW,
    Format,
    Span,
    archived_through,
    columns,
    grouped,
    no_row,
    row_of,
    rows,
    sequence,
    table,
    written,
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur usage",
        description="Sums by skill, day, model or key; or the rows themselves, from a number on or one alone. "
        "`secateur usage archive` moves old rows to files.",
    )
    options.add_argument("ledger", metavar="LEDGER", help=LEDGER_HELP)
    options.add_argument("--by", help=f"any of {', '.join(GROUPS)}, separated by commas (default: skill)")
    options.add_argument("--since", default="", metavar="DAY", help="the first day, YYYY-MM-DD in UTC")
    options.add_argument("--until", default="", metavar="DAY", help="the last day, YYYY-MM-DD in UTC")
    options.add_argument(
        "--after", type=sequence, metavar="N", help="print the rows numbered above N instead of sums; 0 prints all"
    )
    options.add_argument(
        "--request",
        metavar="ID",
        help="print the row of one reply: its X-Request-Id, or the id in the response, such as chatcmpl-...",
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
    if arguments.request is not None and (arguments.after is not None or arguments.by or span != EVER):
        raise ConfigError("--request prints one reply: leave out --after, --by, --since and --until")
    with opened(arguments.ledger) as ledger:
        if arguments.request is not None:
            print_row(ledger, arguments.request, arguments.format or "jsonl")
        elif arguments.after is not None:
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


def print_row(ledger: str, reply: str, form: str) -> None:
    """Print the row of one reply; raises ConfigError if there is none."""
    with snapshot(ledger) as database:
        found = row_of(database, reply)
        if not found:
            raise ConfigError(no_row(database, reply))
    sys.stdout.writelines(written(ROW, found, _row_format(form)))


def print_rows(ledger: str, after: int, span: Span, form: str) -> None:
    """Print the closed rows numbered above `after`."""
    sys.stdout.writelines(written(ROW, every_row(ledger, after, span), _row_format(form)))


def _row_format(form: str) -> Format:
    """The format of rows; raises ConfigError for a table."""
    if form == "table":
        raise ConfigError("rows are written as csv or jsonl: choose one with --format")
    return "csv" if form == "csv" else "jsonl"


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
