"""`secateur skills check PATH`: says what each skill is, or which file is wrong, where, and what is allowed."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from server.models.reload import warnings
from server.skills.catalogue import Skills


def main(argv: Sequence[str]) -> int:
    """Returns 0 if every skill is valid; raises ConfigError otherwise."""
    parser = argparse.ArgumentParser(prog="secateur skills", description="Look at skills before they are served.")
    actions = parser.add_subparsers(required=True, metavar="check")
    check = actions.add_parser("check", help="validate a skill's TOML file, or a folder of them")
    check.add_argument("path", type=Path)
    for skill in Skills.read(parser.parse_args(argv).path):
        who = [f"{len(skill.origins)} origins"] if skill.origins else []
        who += [f"{len(skill.keys)} keys in the file"] if skill.keys else []
        print(f"{skill.name}  revision {skill.revision}  {', '.join(who) or 'opened by keys of the keys file only'}")
        for warning in warnings(skill):
            print(f"  warning: {warning}")
    return 0
