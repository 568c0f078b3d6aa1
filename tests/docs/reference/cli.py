"""The commands of `secateur` with their arguments, read from each command's argparse parser."""

import argparse
import inspect
from collections.abc import Iterator
from importlib import import_module

from server.commands.__main__ import COMMANDS
from server.commands.ledger import archive, usage
from tests.docs.reference.markdown import prose, table


def sections() -> str:
    """A table of the commands, then one section for each command and action."""
    rows = [(f"[`secateur {name}`](#secateur-{name})", command.help) for name, command in COMMANDS.items()]
    modules = [import_module(command.module) for command in COMMANDS.values()]
    modules.insert(modules.index(usage) + 1, archive)  # an action beside the options of `secateur usage`
    parsers = [module.parser() for module in modules]
    return "\n\n".join(
        [table(("command", "what it does"), rows), *(part for each in parsers for part in described(each))]
    )


def described(parser: argparse.ArgumentParser, said: str | None = None) -> Iterator[str]:
    """The section of a parser, then those of its actions; `said` is what the parser above says of it."""
    yield f"{'###' if parser.prog.count(' ') > 1 else '##'} {parser.prog}"
    if text := parser.description or said:
        yield prose(inspect.cleandoc(text))
    rows = [row(action) for action in parser._actions if takes(action)]
    if rows:
        yield table(("argument", "default", "meaning"), rows)
    for action in parser._actions:  # argparse has no public way to the actions below a parser
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, below in action.choices.items():
                yield from described(below, helps.get(name))


def takes(action: argparse.Action) -> bool:
    return not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)


def row(action: argparse.Action) -> tuple[str, str, str]:
    return f"`{written(action)}`", default(action), prose(action.help or "")


def written(action: argparse.Action) -> str:
    """How an argument is written: `--to hf|gguf`, `PATH ...`."""
    if action.nargs == 0:
        return ", ".join(action.option_strings)
    value = "|".join(map(str, action.choices)) if action.choices else metavar(action)
    if action.nargs in ("+", "*"):
        value = f"{value} ..."
    elif action.nargs == "?":
        value = f"[{value}]"
    return f"{action.option_strings[-1]} {value}" if action.option_strings else value


def metavar(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.upper())


def default(action: argparse.Action) -> str:
    """What holds where the argument is left out."""
    if action.required:
        return "required"
    if action.nargs == 0 or action.default in (None, "", [], argparse.SUPPRESS):
        return ""
    value = action.default
    return f"`{' '.join(map(str, value)) if isinstance(value, list) else value}`"
