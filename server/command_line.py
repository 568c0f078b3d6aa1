"""What all commands share: a parser of arguments that guesses what a misspelt one was meant to be, and JSON output."""

import argparse
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import NoReturn

import msgspec

CHOICE = re.compile(r"invalid choice: (.+?) \(choose from (.+)\)$")


class Parser(argparse.ArgumentParser):
    """Ends with exit code 2 after a mistake, as argparse does, and names the nearest option or choice."""

    def error(self, message: str) -> NoReturn:
        """Print the usage, the mistake and the guess, then exit with 2."""
        super().error(message + "".join(f"; did you mean {near}?" for near in self._guesses(message)))

    def _guesses(self, message: str) -> Iterator[str]:
        """The nearest name for each misspelt one in argparse's message."""
        if found := CHOICE.search(message):
            yield from get_close_matches(found[1].strip("'\""), re.findall(r"[^\s,'\"]+", found[2]), n=1)
        elif message.startswith("unrecognized arguments: "):
            known = list(_options(self))
            for word in message.split()[2:]:
                if word.startswith("--"):
                    yield from get_close_matches(word.partition("=")[0], known, n=1)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The long options of a parser and of the parsers below."""
    for action in parser._actions:  # argparse has no public list of them
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _options(below)


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(msgspec.json.format(msgspec.json.encode(value)).decode())
