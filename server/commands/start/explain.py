"""`secateur explain CODE`: what an error code means and what to do, or all codes."""

import argparse
from collections.abc import Sequence

from server.commands.start.codes import CODES
from server.errors import SecateurError
from server.storage.toml import nearest


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
        guess = nearest(code, CODES, "``")
        raise SecateurError(f"there is no code {code!r}; {guess}`secateur explain` lists all")
    print(f"{code}: {CODES[code].meaning}\n{CODES[code].remedy}")
    return 0
