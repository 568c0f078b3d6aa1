"""`secateur conversations`: exports and erases what visitors wrote, and makes the keys that encrypt it."""

import argparse
import getpass
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from server.chat.conversation.erasure import Chosen, erase, export
from server.chat.kept.feedback import Feedback
from server.chat.kept.ratings import SharedFeedback
from server.chat.kept.sealing import Seal, add_key
from server.chat.kept.texts import Texts
from server.command_line import Parser, print_json
from server.commands.ledger.recording import record
from server.config import Config, load
from server.errors import ConfigError
from server.metering.audit.chain import Event
from server.metering.ledger.connection import instance_of


def parser() -> argparse.ArgumentParser:
    """The actions and their options."""
    top = Parser(
        prog="secateur conversations",
        description="Export or erase the widget's conversations, also while the server runs; make keys for them.",
    )
    actions = top.add_subparsers(required=True, metavar="export | erase | key")
    exporting = actions.add_parser("export", help="print conversations as JSON, with ratings and comments")
    _add_choice(exporting)
    exporting.set_defaults(run=_export)
    erasing = actions.add_parser("erase", help="delete conversations with their ratings and comments; it is audited")
    _add_choice(erasing)
    erasing.set_defaults(run=_erase)
    key = actions.add_parser("key", help="make a key, the first of a file, which encrypts from the next start on")
    key.add_argument("--file", type=Path, required=True, help="the server's `conversation_key`; keep it secret")
    key.set_defaults(run=_key)
    return top


def _add_choice(action: argparse.ArgumentParser) -> None:
    """The server and the conversations that an action is about."""
    action.add_argument("server", type=Path, metavar="SERVER.toml", help="the server's settings")
    which = action.add_mutually_exclusive_group(required=True)
    which.add_argument("--visitor", metavar="ID", help="a verified visitor: `sub` of the identity that the page signed")
    which.add_argument("--conversation", metavar="ID", help="one conversation, cnv_...")
    which.add_argument("--all", action="store_true", help="every conversation")
    action.add_argument("--skill", default="", help="only those with this skill: two sites may use the same ids")


def main(argv: Sequence[str]) -> int:
    """Carry out one action; returns 0. Raises SecateurError."""
    arguments = parser().parse_args(argv)
    arguments.run(arguments)
    return 0


def _export(arguments: argparse.Namespace) -> None:
    config = _config(arguments.server)
    with closing(texts_of(config)) as texts, closing(feedback_of(config, texts)) as feedback:
        found = export(texts, feedback, _chosen(arguments))
    print_json(found)


def _erase(arguments: argparse.Namespace) -> None:
    config, chosen = _config(arguments.server), _chosen(arguments)
    with closing(texts_of(config)) as texts, closing(feedback_of(config, texts)) as feedback:
        conversations, turns = erase(texts, feedback, chosen)
        who = chosen.conversation or (f"visitor {texts.visitor(chosen.visitor)}" if chosen.visitor else "all")
    what = f"{conversations} conversations with {turns} replies"
    print(f"erased {what}")
    record(config.ledger, Event(getpass.getuser(), "conversations.erased", who, result=what))
    print(
        "kept: token counts in the ledger, which hold no text; questions of `keep_questions`, without a visitor's name"
    )


def _key(arguments: argparse.Namespace) -> None:
    count = add_key(arguments.file)
    print(f"{arguments.file}: {count} keys, the first encrypts" if count > 1 else f"{arguments.file}: 1 key")
    if count > 1:
        print("Restart every server that names the file; drop an old line once its conversations have expired.")
    print("Keep a copy elsewhere: without its key a conversation cannot be read.", file=sys.stderr)


def _config(path: Path) -> Config:
    """The settings of a server that keeps conversations in a database; raises ConfigError."""
    config = load(path)
    if config.conversation_storage == "memory":
        raise ConfigError(
            f"{path} keeps conversations in the server's memory alone, so none can be read or erased here: they end "
            "with its process - at `$.conversation_storage`"
        )
    return config


def feedback_of(config: Config, texts: Texts) -> SharedFeedback:
    """The ratings of a server that keeps conversations in a database."""
    return SharedFeedback(texts, config.feedback_file, instance=instance_of(config.ledger, config.instance))


@contextmanager
def ratings_of(config: Config) -> Iterator[Feedback]:
    """The ratings of a server, wherever it keeps them; closed at the end."""
    if config.conversation_storage == "memory":
        with closing(Feedback(config.feedback_file)) as feedback:
            yield feedback
        return
    with closing(texts_of(config)) as texts, closing(feedback_of(config, texts)) as shared:
        yield shared


def texts_of(config: Config) -> Texts:
    """The database of a server's conversations."""
    return Texts(config.conversations_at, Seal.read(config.conversation_key) if config.conversation_key else None)


def _chosen(arguments: argparse.Namespace) -> Chosen:
    for option in ("visitor", "conversation"):
        if getattr(arguments, option) == "":
            raise ConfigError(f"--{option} is empty: name an ID, or use --all")
    return Chosen(arguments.visitor or "", arguments.skill, arguments.conversation or "")
