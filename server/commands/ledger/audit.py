"""`secateur audit LEDGER`: prints the audit log, and verifies its chain of hashes."""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from msgspec.structs import asdict, astuple

from server.command_line import Parser
from server.commands.ledger.source import LEDGER_HELP, opened
from server.errors import ConfigError
from server.metering.audit import chain
from server.metering.audit.chain import Entry
from server.metering.ledger.connection import snapshot
from server.metering.usage import table

BROKEN = 1
"""The exit code if the chain is broken or lacks the expected hash."""
SHOWN = ("number", "moment", "who", "action", "object", "address", "result")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur audit",
        description="Print who did what on the admin listener and with keys, or verify that no entry changed.",
    )
    options.add_argument("ledger", metavar="LEDGER", help=LEDGER_HELP)
    options.add_argument("--since", metavar="TIME", type=_moment, help="ISO 8601; UTC without an offset")
    options.add_argument("--action", help="only entries of this action, such as reload, or key. for all that begin so")
    options.add_argument("--format", choices=["table", "jsonl"], default="table", help="default: table")
    options.add_argument(
        "--verify", action="store_true", help="recompute the chain and print its head; exit code 1 if it is broken"
    )
    options.add_argument(
        "--expect",
        metavar="HASH",
        help="verify too that the log still has the entry of this hash, an earlier head: shows a cut end",
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Print entries, or verify; returns 1 if the chain is broken, else 0. Raises ConfigError."""
    arguments = parser().parse_args(argv)
    with opened(arguments.ledger) as ledger, snapshot(ledger) as database:
        if chain.TABLE not in database.tables():
            raise ConfigError(f"{database.where} has no audit log yet: a server makes it when it starts")
        found = chain.entries(database)
        if arguments.verify or arguments.expect:
            return verify(found, arguments.expect)
        show(chosen(found, arguments.since or "", arguments.action), arguments.format)
    return 0


def chosen(found: Iterable[Entry], since: str, action: str | None) -> Iterator[Entry]:
    """The entries from `since` on with this action; one that ends in a dot is a prefix."""
    for entry in found:
        if entry.moment >= since and (action is None or _matches(entry.action, action)):
            yield entry


def show(found: Iterable[Entry], form: str) -> None:
    """Print entries as a table, or with all fields as JSON lines."""
    if form == "jsonl":
        for entry in found:
            print(json.dumps(asdict(entry)))
        return
    print(table(SHOWN, [(str(entry.number), *astuple(entry)[1 : len(SHOWN)]) for entry in found]))


def verify(found: Iterable[Entry], expected: str | None) -> int:
    """Print each fault, then the count and the head; returns 1 if there is a fault or `expected` is missing, else 0."""
    seen: set[str] = set()
    head = (0, chain.GENESIS)
    count = 0

    def watched() -> Iterator[Entry]:
        nonlocal head, count
        for entry in found:
            seen.add(entry.hash)
            head, count = (entry.number, entry.hash), count + 1
            yield entry

    broken = list(chain.faults(watched()))
    if expected and expected not in seen:
        broken.append(f"no entry has the hash {expected}: entries were removed from the end, or all were rewritten")
    for fault in broken:
        print(fault)
    print(f"{count} entries, {len(broken)} faults; head: entry {head[0]}, {head[1]}")
    return BROKEN if broken else 0


def _matches(action: str, wanted: str) -> bool:
    return action.startswith(wanted) if wanted.endswith(".") else action == wanted


def _moment(text: str) -> str:
    """Parse an ISO 8601 date or time, UTC by default, and return it in the log's format, which sorts as text."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 2026-11-30 or 2026-11-30T12:00:00Z") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="microseconds")
