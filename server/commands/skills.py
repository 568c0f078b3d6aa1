"""`secateur skills check PATH`: validates skills, and names the file, the field and the allowed values of a mistake."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from server.config import load
from server.config import warnings as settings_warnings
from server.models.reload import warnings
from server.skills.catalogue import Skills


def parser() -> argparse.ArgumentParser:
    """The action and its options."""
    top = argparse.ArgumentParser(prog="secateur skills", description="Validate skills before they are served.")
    actions = top.add_subparsers(required=True, metavar="check")
    check = actions.add_parser("check", help="validate a skill's TOML file, or a folder of them")
    check.add_argument("path", type=Path, help="a TOML file, or a folder of them")
    check.add_argument(
        "--server",
        type=Path,
        metavar="SERVER.toml",
        help="also validate the server's settings and show their warnings",
    )
    return top


def main(argv: Sequence[str]) -> int:
    """Print one line per skill, and its warnings; returns 0. Raises ConfigError for a mistake."""
    arguments = parser().parse_args(argv)
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
    return 0
