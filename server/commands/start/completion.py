"""`secateur completion SHELL`: the script that completes commands, options and files in a shell."""

import argparse
from collections.abc import Sequence
from importlib import import_module

import shtab

from server.command_line import Parser

SHELLS = ("bash", "zsh", "tcsh")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur completion",
        description="Print the script that completes secateur's commands and options: "
        "`secateur completion bash > ~/.local/share/bash-completion/completions/secateur`.",
    )
    options.add_argument("shell", choices=SHELLS, help="the shell to complete in")
    return options


def main(argv: Sequence[str]) -> int:
    """Print the script; returns 0."""
    print(shtab.complete(whole(), parser().parse_args(argv).shell))
    return 0


def whole() -> argparse.ArgumentParser:
    """One parser of every command, whose paths complete to files."""
    from server.commands.__main__ import COMMANDS  # late: it imports this module by name

    top = Parser(prog="secateur", description="Prune a language model, prove it, serve it.")
    top.add_argument("-V", "--version", action="store_true", help="print the version")
    commands = top.add_subparsers()
    for name, command in COMMANDS.items():
        own: Parser = import_module(command.module).parser()
        _complete_files(own)
        commands.add_parser(name, parents=[own], add_help=False, help=command.help, description=own.description)
    return top


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Complete every argument without choices to files, and so in the parsers below."""
    for action in parser._actions:  # argparse has no public list of them
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _complete_files(below)
        elif action.choices is None and action.nargs != 0:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
