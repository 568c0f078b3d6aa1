"""`secateur explain CODE`: what an error code means and what to do, or all codes."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches

from server.commands.start.codes import CODES
from server.errors import SecateurError


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        prog="secateur explain", description="Say what the `code` of an error means for an operator, and what to do."
    )
    options.add_argument("code", nargs="?", help="the code, such as origin_not_allowed (default: list all)")
    return options


def main(argv: Sequence[str]) -> int:
    """Print the explanation; returns 0. Raises SecateurError for an unknown code."""
    code = parser().parse_args(argv).code
    if code is None:
        width = max(map(len, CODES))
        print("\n".join(f"{name:<{width}}  {advice.meaning}" for name, advice in CODES.items()))
        return 0
    if code not in CODES:
        near = get_close_matches(code, CODES, n=1)
        guess = f"did you mean `{near[0]}`? " if near else ""
        raise SecateurError(f"there is no code {code!r}; {guess}`secateur explain` lists all")
    print(f"{code}: {CODES[code].meaning}\n{CODES[code].remedy}")
    return 0
