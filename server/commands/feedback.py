"""`secateur feedback`: shows what visitors said about answers: ratings, reasons and comments."""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from server.chat.kept.feedback import Chosen, Given, listed
from server.chat.kept.ratings import listed as ratings
from server.command_line import Parser
from server.commands.conversations import texts_of
from server.config import load
from server.errors import ConfigError
from server.storage.database import StorageError


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = Parser(
        prog="secateur feedback",
        description="Show visitors' ratings that have a comment or a reason, the newest first; only reads.",
    )
    top.add_argument(
        "file",
        type=Path,
        metavar="FEEDBACK | SERVER.toml",
        help="the server's `feedback`, an SQLite file, or its settings",
    )
    top.add_argument("--skill", default="", metavar="NAME", help="of this skill only")
    top.add_argument("--rating", choices=("up", "down"), default="", help="only these")
    top.add_argument("--silent", action="store_true", help="also ratings without comment and reason")
    top.add_argument("--limit", type=int, default=100, metavar="N", help="ratings to show (default: 100)")
    top.add_argument("--json", action="store_true", help="as JSON lines")
    return top


def main(argv: Sequence[str]) -> int:
    """Print the ratings; returns 0. Raises ConfigError."""
    arguments = parser().parse_args(argv)
    chosen = Chosen(arguments.skill, arguments.rating, arguments.silent, arguments.limit)
    try:
        found = _found(arguments.file, chosen)
    except StorageError as error:
        raise ConfigError(
            f"{arguments.file} has no ratings to list ({error}): give the server's `feedback`, by default "
            "feedback.sqlite3 beside its ledger"
        ) from None
    for one in found:
        print(json.dumps(one._asdict(), ensure_ascii=False) if arguments.json else line(one))
    return 0


def _found(path: Path, chosen: Chosen) -> list[Given]:
    """The ratings in a file, or where the server of these settings keeps them."""
    if path.suffix != ".toml":
        return listed(path, chosen)
    config = load(path)
    if config.conversation_storage == "memory":
        return listed(config.feedback_file, chosen)
    with closing(texts_of(config)) as texts:
        return texts.transact(lambda database: ratings(database, texts, chosen))


def line(one: Given) -> str:
    """A rating on one line; control characters of a comment cannot reach the terminal."""
    day = datetime.fromtimestamp(one.at, UTC).strftime("%Y-%m-%d %H:%M")
    words = "".join(letter if letter.isprintable() else " " for letter in one.comment)
    return f"{day}  {one.skill}  {one.rating:<4}  {','.join(one.reasons) or '-'}  {words}".rstrip()
