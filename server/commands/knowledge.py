"""`secateur knowledge`: builds a searchable artifact from documents, searches it, shows it, and compares two."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from server.command_line import Parser, print_json
from server.errors import ConfigError
from server.knowledge import settings, show
from server.knowledge.search import Knowledge
from server.storage.database import StorageError


def main(argv: Sequence[str]) -> int:
    """Run one action; returns 0. Raises ConfigError, KnowledgeError or ArtifactError."""
    arguments = parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def parser() -> argparse.ArgumentParser:
    """The actions and their options."""
    top = Parser(prog="secateur knowledge", description="Knowledge: documents as a searchable artifact.")
    actions = top.add_subparsers(required=True, metavar="ACTION")
    build = actions.add_parser("build", help=_build.__doc__, description=_build.__doc__)
    build.add_argument("settings", type=Path, metavar="KNOWLEDGE.toml", help="the sources, and how they are cut")
    build.add_argument("--output", type=Path, required=True, metavar="DIR", help="the artifact's directory")
    build.set_defaults(run=_build)
    search = actions.add_parser("search", help=_search.__doc__, description=_search.__doc__)
    search.add_argument("knowledge", type=Path, metavar="DIR", help="a knowledge artifact's directory")
    search.add_argument("question", help="what to search for")
    search.add_argument("--limit", type=int, default=5, metavar="N", help="passages to show (default: 5)")
    search.add_argument("--groups", nargs="+", default=[], metavar="GROUP", help="search as a visitor in these groups")
    search.add_argument("--json", action="store_true", help="as a JSON array, the best first")
    search.set_defaults(run=_search)
    shown = actions.add_parser("show", help=_show.__doc__, description=_show.__doc__)
    shown.add_argument("knowledge", type=Path, metavar="DIR", help="a knowledge artifact's directory")
    shown.set_defaults(run=_show)
    asked = actions.add_parser("questions", help=_questions.__doc__, description=_questions.__doc__)
    asked.add_argument("file", type=Path, metavar="FEEDBACK", help="the server's `feedback`, an SQLite file")
    asked.add_argument("--skill", default="", metavar="NAME", help="of this skill only")
    asked.add_argument("--limit", type=int, default=100, metavar="N", help="questions to show (default: 100)")
    asked.add_argument("--json", action="store_true", help="as a JSON array; times are seconds since 1970")
    asked.set_defaults(run=_questions)
    compared = actions.add_parser("diff", help=_diff.__doc__, description=_diff.__doc__)
    compared.add_argument("a", type=Path, metavar="A", help="a knowledge artifact's directory")
    compared.add_argument("b", type=Path, metavar="B", help="another one")
    compared.set_defaults(run=_diff)
    return top


def _build(arguments: argparse.Namespace) -> int:
    """Build or update an artifact; unchanged documents are not read again, and a killed build resumes."""
    from server.knowledge.build.building import build  # late: not needed to search

    wanted = settings.read(arguments.settings)
    made = build(wanted, arguments.settings.parent, arguments.output)
    print("\n".join(show.built(made)))
    return 0


def _search(arguments: argparse.Namespace) -> int:
    """Show the passages that answer a question best, with their scores."""
    knowledge = Knowledge.open(arguments.knowledge)
    found = knowledge.search(arguments.question, arguments.limit, frozenset(arguments.groups))
    if arguments.json:
        print_json(found)
        return 0
    print("\n".join(show.results(knowledge, found)))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    """List the documents, the unreadable ones with their reasons, and the calibrated thresholds."""
    print("\n".join(show.details(Knowledge.open(arguments.knowledge, words_only=True))))
    return 0


def _questions(arguments: argparse.Namespace) -> int:
    """List the questions that were refused, or whose answers were rated down, the most frequent first."""
    from server.chat.kept.questions import listed

    try:
        found = listed(arguments.file, arguments.skill, arguments.limit)
    except StorageError as error:
        raise ConfigError(
            f"{arguments.file} has no questions to list ({error}): give the server's `feedback`, by default "
            "feedback.sqlite3 beside its ledger"
        ) from None
    if arguments.json:
        print_json([one._asdict() for one in found])
        return 0
    for one in found:
        last = datetime.fromtimestamp(one.last, UTC).strftime("%Y-%m-%d")
        print(f"{one.times:>5}  {last}  {one.skill}  {one.why:<10}  {' '.join(one.text.split())}")
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    """List the documents and settings that differ between two artifacts."""
    left, right = (Knowledge.open(path, words_only=True) for path in (arguments.a, arguments.b))
    print("\n".join(show.difference(left, right)) or "no document and no setting differs")
    return 0
