"""`secateur skills experiment`: compares the published revision with a rival on visitors' conversations."""

import argparse
import getpass

from server.chat.conversation.experiment import Results, results
from server.command_line import Parser, print_json
from server.commands.conversations import ratings_of
from server.commands.ledger.recording import record
from server.commands.skills.opening import add_server, named, revisions_of
from server.config import Config, load
from server.errors import ConfigError, NotFound
from server.intervals import Interval
from server.metering.ledger.connection import snapshot
from server.models.reload import configured, move_event, trial_event
from server.skills.revisions.experiments import Trial
from server.skills.revisions.splitting import running
from server.storage.database import StorageError

NEXT = "a running server follows within `registry_seconds`"
ROWS = (
    ("liked", "ratings that are up", 100, " %"),
    ("refused", "replies refused", 100, " %"),
    ("tokens", "tokens of a reply with its prompt", 1, ""),
    ("length", "tokens of a reply alone", 1, ""),
)


def add_experiment(actions: "argparse._SubParsersAction[Parser]") -> None:
    """The action and its own actions."""
    top = actions.add_parser("experiment", help="compare the published revision with another on conversations")
    own = top.add_subparsers(required=True, metavar="start | show | decide | stop")
    start = own.add_parser("start", help=f"let a revision answer a share of the conversations: {NEXT}")
    start.add_argument("revision", help="NAME@NUMBER, or NAME@draft, the latest")
    start.add_argument(
        "--share", type=float, default=0.5, help="its share of the conversations, between 0 and 1 (default: 0.5)"
    )
    start.set_defaults(run=_start)
    show = own.add_parser("show", help="print ratings, refusals, tokens and lengths of both, with 95 %% intervals")
    show.add_argument("name", help="the skill")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(run=_show)
    decide = own.add_parser("decide", help="publish the winner, which ends the experiment")
    decide.add_argument("revision", help="NAME@NUMBER: one of the two")
    decide.set_defaults(run=_decide)
    stop = own.add_parser("stop", help="let the published revision answer everybody")
    stop.add_argument("name", help="the skill")
    stop.set_defaults(run=_stop)
    for action in (start, show, decide, stop):
        add_server(action)
    for action in (start, decide, stop):
        action.add_argument("--reason", default="", help="why, kept with the change")


def _start(arguments: argparse.Namespace) -> None:
    with revisions_of(arguments.server) as (config, revisions):
        name, number = named(arguments.revision)
        found = revisions.get(name, number)
        made = revisions.compare(name, found.number, arguments.share, author=getpass.getuser(), reason=arguments.reason)
        record(config.ledger, trial_event(made))
    print(
        f"{name}@{made.rival} answers {100 * made.share:g} % of the conversations, {name}@{made.number} the others: "
        f"{NEXT}"
    )


def _stop(arguments: argparse.Namespace) -> None:
    with revisions_of(arguments.server) as (config, revisions):
        made = revisions.end(arguments.name, author=getpass.getuser(), reason=arguments.reason)
        record(config.ledger, trial_event(made))
    print(f"{made.skill}@{made.number} answers every conversation: {NEXT}")


def _decide(arguments: argparse.Namespace) -> None:
    with revisions_of(arguments.server) as (config, revisions):
        name, number = named(arguments.revision)
        made = revisions.decide(name, number, author=getpass.getuser(), reason=arguments.reason)
        record(config.ledger, trial_event(made) if isinstance(made, Trial) else move_event(made))
    print(f"{name}@{number} is published and answers every conversation: {NEXT}")


def _show(arguments: argparse.Namespace) -> None:
    """Print the figures, also of an experiment between files."""
    found = _results(load(arguments.server), arguments.name)
    if arguments.json:
        print_json(found)
        return
    print("\n".join(_table(found)))


def _results(config: Config, name: str) -> Results:
    skill = next((skill for skill in configured(config) if skill.name == name), None)
    experiment = running(skill) if skill else None
    if skill is None or experiment is None:
        raise NotFound(f"No experiment runs with {name!r}." if skill else f"There is no skill {name!r}.")
    try:
        with snapshot(config.ledger) as database, ratings_of(config) as feedback:
            if "ledger" not in database.tables():
                raise NotFound(f"No server has counted replies in {config.ledger} yet: start one, then ask again.")
            return results(skill, experiment, database, feedback)
    except StorageError as error:
        raise ConfigError(f"{config.ledger} cannot be read: {error}") from None


def _table(found: Results) -> list[str]:
    """The figures as lines of a terminal."""
    arms = (found.published, found.rival)
    names = [f"{found.skill}@{arm.number}" if arm.number else arm.digest for arm in arms]
    since = f"since {found.since}" if found.since else "the rival has answered nobody yet"
    lines = [f"{found.skill}: {names[1]} answers {100 * found.share:g} % of the conversations, {since}"]
    lines.append(_row("", f"{names[0]} (published)", f"{names[1]} (rival)", "rival minus published"))
    lines.append(_row("replies", *(str(arm.replies) for arm in arms), ""))
    lines.append(_row("ratings", *(str(arm.ratings) for arm in arms), ""))
    for field, label, scale, unit in ROWS:
        values = [getattr(one, field) for one in (found.published.figures, found.rival.figures, found.difference)]
        lines.append(_row(label, *(_shown(value, scale, unit) for value in values)))
    return [line.rstrip() for line in lines]


def _row(label: str, *cells: str) -> str:
    return f"{label:<34}" + "".join(f"{cell:<28}" for cell in cells)


def _shown(interval: Interval | None, scale: int, unit: str) -> str:
    if interval is None:
        return "-"
    value, low, high = (scale * number for number in (interval.value, interval.low, interval.high))
    return f"{value:.1f}{unit} ({low:.1f} to {high:.1f})"
