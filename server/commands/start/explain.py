"""`secateur explain CODE`: what an error code means and what to do, or all codes."""

import argparse
import json
from collections.abc import Sequence

from server.command_line import Parser
from server.commands.start.codes import CODES
from server.errors import SecateurError
from server.storage.toml import nearest


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur explain", description="Say what the `code` of an error means for an operator, and what to do."
    )
    options.add_argument("code", nargs="?", help="the code, such as origin_not_allowed (default: list all)")
    options.add_argument("--json", action="store_true", help="as a JSON object: each code with its meaning and remedy")
    return options


def main(argv: Sequence[str]) -> int:
    """Print the explanation; returns 0. Raises SecateurError for an unknown code."""
    arguments = parser().parse_args(argv)
    code: str | None = arguments.code
    if code is not None and code not in CODES:
        guess = nearest(code, CODES, "``")
        raise SecateurError(f"there is no code {code!r}; {guess}`secateur explain` lists all")
    found = CODES if code is None else {code: CODES[code]}
    if arguments.json:
        print(json.dumps({name: advice._asdict() for name, advice in found.items()}, indent=2))
    elif code is None:
        width = max(map(len, CODES))
        print("\n".join(f"{name:<{width}}  {advice.meaning}" for name, advice in CODES.items()))
    else:
        print(f"{code}: {CODES[code].meaning}\n{CODES[code].remedy}")
    return 0
