"""`secateur usage` prints what the ledger counted; `secateur reconcile` proves that its sums are those of its rows."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from server import config
from server.errors import ConfigError
from server.metering import prometheus, reconcile
from server.metering.usage import GROUPS, MOST_ROWS, ROW, Span, columns, grouped, rows, sequence, table, written
from server.storage.database import POSTGRES, StorageError, reader, shown

DIFFERENT = 1


def main(argv: Sequence[str]) -> int:
    """Run `usage` or `reconcile`; returns 1 where something does not agree."""
    command, *words = argv
    parser = argparse.ArgumentParser(prog=f"secateur {command}")
    parser.add_argument("ledger", metavar="LEDGER", help="an SQLite file, postgresql://..., or a server's TOML file")
    run = _usage if command == "usage" else _reconcile
    if command == "usage":
        parser.description = "Sums by skill, day, model or key; or the rows themselves, from a number on."
        parser.add_argument("--by", help=f"any of {', '.join(GROUPS)}, with commas (default: skill)")
        parser.add_argument("--since", default="", metavar="DAY", help="the first day, YYYY-MM-DD, UTC")
        parser.add_argument("--until", default="", metavar="DAY", help="the last day")
        parser.add_argument(
            "--after", type=sequence, metavar="N", help="the rows whose sequence number is above N, not sums"
        )
        parser.add_argument("--format", choices=["table", "csv", "jsonl"], help="default: table, of rows jsonl")
    else:
        parser.description = "Recompute totals and budgets from the rows, and exit with 1 on any difference."
        parser.add_argument("--metrics", action="append", default=[], metavar="URL", help="a server's /metrics as well")
        parser.add_argument(
            "--prometheus", action="append", default=[], metavar="URL", help="and one that scrapes them"
        )
        parser.add_argument("--key-file", type=Path, metavar="FILE", help="holds an admin key, where that needs one")
    arguments = parser.parse_args(words)
    where = ledger_of(arguments.ledger)
    try:
        return run(where, arguments)
    except StorageError as error:
        raise ConfigError(f"{shown(where)} cannot be read as a ledger: {error}") from None


def ledger_of(text: str) -> str:
    """The ledger that is meant; raises ConfigError where there is none."""
    where = config.load(Path(text)).ledger if text.endswith(".toml") else text
    if not POSTGRES.match(where) and not Path(where).exists():
        raise ConfigError(f"there is no ledger at {where}: a server makes it when it starts")
    return where


def key_in(path: Path) -> str:
    """The key in a file, as Prometheus's `credentials_file` has it."""
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} cannot be read as a key") from None


def _usage(where: str, arguments: argparse.Namespace) -> int:
    span = Span(arguments.since, arguments.until)
    if arguments.after is not None:
        if arguments.by is not None:
            raise ConfigError("--after lists rows and --by adds them up: give one of them")
        return _rows(where, arguments.after, span, arguments.format or "jsonl")
    by = [name for name in (arguments.by or "skill").split(",") if name]
    with reader(where) as database:
        found = grouped(database, by, span)
    if arguments.format in (None, "table"):
        print(table(columns(by), found))
    else:
        sys.stdout.writelines(written(columns(by), found, arguments.format))
    return 0


def _rows(where: str, after: int, span: Span, form: str) -> int:
    """All rows after a number."""
    if form == "table":
        raise ConfigError("rows are written as csv or jsonl")
    sys.stdout.writelines(written(ROW, every_row(where, after, span), "csv" if form == "csv" else "jsonl"))
    return 0


def every_row(where: str, after: int, span: Span) -> Iterator[tuple[Any, ...]]:
    """All closed rows after a number; the ledger is let go while whoever reads them takes a few thousand."""
    while True:
        with reader(where) as database:
            found = rows(database, after, MOST_ROWS, span)
        yield from found
        if len(found) < MOST_ROWS:
            return
        after = found[-1][0]


def _prometheus(where: str, url: str) -> list[str]:
    """What differs from a Prometheus, which is read first: while replies end, the ledger is ahead of it."""
    servers = prometheus.stored(url)
    with reader(where) as database:
        for name in sorted({key[0] for key in reconcile.totals(database)["tokens"]} - servers.keys()):
            print(f"{url} does not scrape the instance {name!r}: it is gone, or forgotten")
        return prometheus.against_prometheus(database, url, servers)


def _reconcile(where: str, arguments: argparse.Namespace) -> int:
    with reader(where) as database:
        found = reconcile.differences(database)
        [(count,)] = database.execute("SELECT count(*) FROM requests")

    def read() -> dict[str, reconcile.Sums]:
        with reader(where) as database:
            return reconcile.totals(database)

    key = key_in(arguments.key_file) if arguments.key_file else ""
    for url in arguments.metrics:
        found += reconcile.against_metrics(read, url, key)
    for url in arguments.prometheus:
        found += _prometheus(where, url)
    for difference in found:
        print(difference)
    print(f"{count} rows, {len(found)} differences")
    return DIFFERENT if found else 0
