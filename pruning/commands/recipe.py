"""`secateur recipe [NAME]`: lists the recipes that come with the package, or prints one to begin with."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from pruning.errors import RecipeError
from server.command_line import Parser
from server.storage.files import write_atomically
from server.storage.packages import PACKAGE, located
from server.storage.toml import nearest

EXAMPLES = f"{PACKAGE}pruning/examples"
"""The repository's folder examples/, which the wheel has too."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur recipe",
        description="Print a recipe that comes with the package, to be changed and given to `secateur prune`; its "
        "sources are found from any folder. Without a name, list all recipes.",
    )
    options.add_argument("name", nargs="?", help="the recipe, such as smollm2-vocabulary (default: list all)")
    options.add_argument("--output", type=Path, metavar="FILE", help="write the recipe into FILE, which must not exist")
    options.add_argument("--json", action="store_true", help="list as a JSON object: each name with its purpose")
    return options


def main(argv: Sequence[str]) -> int:
    """Print the list or the recipe, or write it; returns 0. Raises RecipeError for an unknown name or a FILE there."""
    options = parser()
    arguments = options.parse_args(argv)
    if arguments.name is None:
        if arguments.output is not None:
            options.error("--output needs the name of a recipe")
        print(_listed(as_json=arguments.json))
        return 0
    text = recipe_text(arguments.name)
    if arguments.output is None:
        print(text, end="")
        return 0
    _write(arguments.output, text)
    print(f"{arguments.output} written: `secateur prune --check {arguments.output}` says what it needs")
    return 0


def recipes() -> dict[str, Path]:
    """The file of each recipe by its name."""
    return {path.stem: path for path in sorted(located(f"{EXAMPLES}/recipes").glob("*.toml"))}


def recipe_text(name: str) -> str:
    """The recipe `name`, with or without .toml, whose sources below examples/ are named as the package's own.

    Raises RecipeError for an unknown name.
    """
    known = recipes()
    stem = name.removesuffix(".toml")
    if stem not in known:
        guess = nearest(stem, known, "``")
        raise RecipeError(f"there is no recipe {name!r}; {guess}there are {', '.join(known)}")
    return known[stem].read_text().replace('"examples/', f'"{EXAMPLES}/')


def purpose(recipe: str) -> str:
    """The first sentence of a recipe's first comment."""
    comment = " ".join(line.lstrip("# ") for line in recipe.partition("\n\n")[0].splitlines())
    return re.split(r"(?<=\.) ", comment, maxsplit=1)[0]


def _listed(*, as_json: bool) -> str:
    """Every recipe with its purpose."""
    found = {name: purpose(path.read_text()) for name, path in recipes().items()}
    if as_json:
        return json.dumps(found, indent=2)
    width = max(map(len, found))
    return "\n".join(f"{name:<{width}}  {sentence}" for name, sentence in found.items())


def _write(path: Path, text: str) -> None:
    """Write a new file; raises RecipeError where there is one, or no folder for it."""
    if path.exists():
        raise RecipeError(f"{path} exists already: name another file")
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror}") from None
