"""`secateur skills`: validates skills' files; saves, compares, publishes and rolls back their revisions."""

import argparse
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import asdict

from server.command_line import Parser, print_json
from server.commands.ledger.recording import record
from server.commands.skills.experiment import add_experiment
from server.commands.skills.opening import add_server, named, revisions_of
from server.config import load
from server.config import warnings as settings_warnings
from server.errors import ConfigError, NotFound
from server.models.reload import move_event, warnings
from server.skills.catalogue import Skills
from server.skills.revisions.store import Revisions
from server.skills.revisions.text import difference
from server.storage.files import write_atomically

NEXT = "a running server reads it within `registry_seconds`"


def parser() -> argparse.ArgumentParser:
    """The actions and their options."""
    top = Parser(prog="secateur skills", description="Skills' files and their revisions.")
    actions = top.add_subparsers(
        required=True, metavar="check | list | diff | import | export | publish | experiment | rollback | withdraw"
    )
    check = actions.add_parser("check", help="validate a skill's TOML file, or a folder of them")
    check.add_argument("path", type=Path, help="a TOML file, or a folder of them")
    check.add_argument(
        "--server",
        type=Path,
        metavar="SERVER.toml",
        help="also validate the server's settings and show their warnings",
    )
    check.set_defaults(run=_check)
    _add_reading(actions)
    _add_changing(actions)
    add_experiment(actions)
    return top


def _add_reading(actions: "argparse._SubParsersAction[Parser]") -> None:
    """The actions that change no revision."""
    listing = actions.add_parser("list", help="list the revisions, and which are published")
    listing.add_argument("name", nargs="?", help="of this skill only")
    listing.add_argument("--json", action="store_true", help="as a JSON array")
    listing.set_defaults(run=_list)
    diff = actions.add_parser("diff", help="print what differs between two revisions, or between file and database")
    diff.add_argument("old", help="NAME@NUMBER, NAME@published, NAME@draft (the latest), or a TOML file")
    diff.add_argument("new", help="another one")
    diff.set_defaults(run=_diff)
    export = actions.add_parser("export", help="write the published revisions as files, for git")
    export.add_argument("folder", type=Path, help="the folder to write NAME.toml into")
    export.set_defaults(run=_export)
    for action in (listing, diff, export):
        add_server(action)


def _add_changing(actions: "argparse._SubParsersAction[Parser]") -> None:
    """The actions that save a revision, or change what is served."""
    importing = actions.add_parser("import", help="save each file as a revision, unless it is the latest already")
    importing.add_argument("path", type=Path, help="a TOML file, or a folder of them")
    importing.add_argument("--publish", action="store_true", help="publish them too")
    importing.set_defaults(run=_import)
    publish = actions.add_parser("publish", help=f"serve a revision: {NEXT}")
    publish.add_argument("revision", help="NAME@NUMBER, or NAME@draft, the latest")
    publish.set_defaults(run=_publish)
    rollback = actions.add_parser("rollback", help="serve again what was served before the last change")
    rollback.add_argument("name", help="the skill")
    rollback.set_defaults(run=_rollback)
    withdraw = actions.add_parser("withdraw", help="serve no revision any more, but the skill's file, if there is one")
    withdraw.add_argument("name", help="the skill")
    withdraw.set_defaults(run=_withdraw)
    for action in (importing, publish, rollback, withdraw):
        add_server(action)
        action.add_argument("--reason", default="", help="why, kept with the change")


def main(argv: Sequence[str]) -> int:
    """Run one action; returns 0, or 1 from `diff` if there is a difference. Raises ConfigError or NotFound."""
    arguments = parser().parse_args(argv)
    return int(arguments.run(arguments) or 0)


def _check(arguments: argparse.Namespace) -> None:
    """Print one line per skill, and its warnings."""
    config = load(arguments.server) if arguments.server else None
    for skill in Skills.read(arguments.path):
        who = [f"{len(skill.origins)} origins"] if skill.origins else []
        who += [f"{len(skill.keys)} keys in the file"] if skill.keys else []
        print(f"{skill.name}  revision {skill.revision}  {', '.join(who) or 'opened by keys of the keys file only'}")
        for warning in warnings(skill):
            print(f"  warning: {warning}")
    if config is not None:
        print(arguments.server)
        for warning in settings_warnings(config):
            print(f"  warning: {warning}")


def _list(arguments: argparse.Namespace) -> None:
    """Print one line per revision, or all of them as JSON."""
    with revisions_of(arguments.server) as (_, revisions):
        names = [arguments.name] if arguments.name else revisions.names()
        published = {name: moves[-1].number for name in names if (moves := revisions.moves(name))}
        found = [(one, one.number == published.get(name)) for name in names for one in revisions.list(name)]
    if arguments.json:
        values = [{**asdict(one), "published": served} for one, served in found]
        kept = [{name: value for name, value in fields.items() if name != "text"} for fields in values]
        print_json(kept)
        return
    for one, served in found:
        words = (f"{one.skill}@{one.number}", one.digest, one.made, one.author, "published" * served, one.reason)
        print("  ".join(words).rstrip())


def _diff(arguments: argparse.Namespace) -> bool:
    """Print the unified diff; returns whether there is one."""
    with revisions_of(arguments.server) as (_, revisions):
        old, new = (_text(revisions, name) for name in (arguments.old, arguments.new))
    found = difference(old, new, (arguments.old, arguments.new))
    sys.stdout.write(found)
    return bool(found)


def _import(arguments: argparse.Namespace) -> None:
    """Save the files; all are read before one is saved."""
    files = sorted(arguments.path.glob("[!.]*.toml")) if arguments.path.is_dir() else [arguments.path]
    names = [skill.name for skill in Skills.read(arguments.path)]
    by = {"author": getpass.getuser(), "reason": arguments.reason}
    with revisions_of(arguments.server) as (config, revisions):
        for name, file in zip(names, files, strict=True):
            made = revisions.save(name, file.read_text(), **by)
            print(f"{name}@{made.number}  {made.digest}")
            if arguments.publish:
                record(config.ledger, move_event(revisions.publish(name, made.number, **by)))


def _export(arguments: argparse.Namespace) -> None:
    """Write the published texts."""
    with revisions_of(arguments.server) as (_, revisions):
        current = {move.skill: move.number for move in revisions.moves()}
        texts = {name: revisions.get(name, number).text for name, number in current.items() if number}
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomically(arguments.folder / f"{name}.toml", text.encode())
            print(arguments.folder / f"{name}.toml")
    except OSError as error:
        raise ConfigError(f"{arguments.folder} cannot be written: {error.strerror}") from None


def _publish(arguments: argparse.Namespace) -> None:
    with revisions_of(arguments.server) as (config, revisions):
        name, number = named(arguments.revision)
        found = revisions.get(name, number)
        move = revisions.publish(name, found.number, author=getpass.getuser(), reason=arguments.reason)
        record(config.ledger, move_event(move))
    print(f"{name}@{found.number} is published: {NEXT}")


def _rollback(arguments: argparse.Namespace) -> None:
    with revisions_of(arguments.server) as (config, revisions):
        move = revisions.rollback(arguments.name, author=getpass.getuser(), reason=arguments.reason)
        record(config.ledger, move_event(move))
    print(f"{move.skill}@{move.number} is published again: {NEXT}")


def _withdraw(arguments: argparse.Namespace) -> None:
    with revisions_of(arguments.server) as (config, revisions):
        if arguments.name not in revisions.names():
            raise NotFound(f"There are no revisions of {arguments.name!r}.")
        move = revisions.withdraw(arguments.name, author=getpass.getuser(), reason=arguments.reason)
        record(config.ledger, move_event(move))
    print(f"no revision of {arguments.name} is served: {NEXT}")


def _text(revisions: Revisions, place: str) -> str:
    """The text of a revision or of a file."""
    path = Path(place)
    if not path.is_file():
        return revisions.get(*named(place)).text
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from None
