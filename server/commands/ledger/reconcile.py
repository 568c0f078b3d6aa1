"""`secateur reconcile LEDGER`: proves that the ledger's totals, and a server's metrics, are the sums of its rows."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from server.command_line import Parser
from server.commands.ledger.source import LEDGER_HELP, opened
from server.errors import ConfigError
from server.metering import prometheus, reconcile
from server.metering.ledger.archive.files import read
from server.metering.ledger.connection import snapshot

DIFFERENT = 1
"""The exit code where something differs."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur reconcile",
        description="Recompute totals and budgets from the rows; exit code 1 on any difference.",
    )
    options.add_argument("ledger", metavar="LEDGER", help=LEDGER_HELP)
    options.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="URL",
        help="also compare a server's /metrics; may be repeated",
    )
    options.add_argument(
        "--prometheus",
        action="append",
        default=[],
        metavar="URL",
        help="also compare a Prometheus that scrapes the servers; may be repeated",
    )
    options.add_argument(
        "--archive",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="also compare the sums of archived rows with their files; repeat it for each archive of the ledger",
    )
    options.add_argument(
        "--key-file", type=Path, metavar="FILE", help="a file with an admin key, where --metrics needs one"
    )
    options.add_argument("--json", action="store_true", help="as a JSON object: rows, differences, notes")
    return options


def main(argv: Sequence[str]) -> int:
    """Print every difference, then a count; returns 1 if there is any, else 0."""
    arguments = parser().parse_args(argv)
    with opened(arguments.ledger) as ledger:
        return compare(ledger, arguments)


def compare(ledger: str, arguments: argparse.Namespace) -> int:
    """Compare the ledger with itself and with the named servers; prints and returns as `main`."""
    notes: list[str] = []
    archives = [read(folder) for folder in arguments.archive]
    with snapshot(ledger) as database:
        found = reconcile.differences(database)
        if archives:
            found += reconcile.against_archives(database, archives)
        notes += reconcile.unfinished(database)
        [(count,)] = database.execute("SELECT count(*) FROM requests")

    def totals() -> dict[str, reconcile.Sums]:
        with snapshot(ledger) as database:
            return reconcile.totals(database)

    key = key_in(arguments.key_file) if arguments.key_file else ""
    for url in arguments.metrics:
        found += reconcile.against_metrics(totals, url, key)
    for url in arguments.prometheus:
        found += against_prometheus(ledger, url, notes)
    if arguments.json:
        print(json.dumps({"rows": count, "differences": found, "notes": notes}, indent=2))
        return DIFFERENT if found else 0
    print("\n".join([*notes, *found, f"{count} rows, {len(found)} differences"]))
    return DIFFERENT if found else 0


def against_prometheus(ledger: str, url: str, notes: list[str]) -> list[str]:
    """The differences from a Prometheus, which is read first: the ledger may only be ahead of it.

    Instances that it does not scrape are added to `notes`.
    """
    servers = prometheus.stored(url)
    with snapshot(ledger) as database:
        for name in sorted({key[0] for key in reconcile.totals(database)["tokens"]} - servers.keys()):
            notes.append(
                f"{url} does not scrape the instance {name!r}: it is gone, or missing from the scrape configuration"
            )
        return prometheus.against_prometheus(database, url, servers)


def key_in(path: Path) -> str:
    """The key in a file such as Prometheus's `credentials_file`."""
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} cannot be read as a key file: it must hold one key in ASCII") from None
