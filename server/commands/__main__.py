"""The console script `secateur`: imports the module of the named command and runs it.

It imports nothing else, so that `secateur --help` is fast and the server never loads the pruning code.
"""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

from server.errors import SecateurError


class Command(NamedTuple):
    """Where a command is, and one line of help; `module` has `parser() -> ArgumentParser` and `main(argv) -> int`."""

    module: str
    help: str


COMMANDS = {
    "prune": Command("pruning.commands.prune", "prune a model as a recipe says, and evaluate it"),
    "recipe": Command("pruning.commands.recipe", "list the recipes that come with the package, or print one"),
    "import": Command("pruning.commands.import_base", "read a base model, and say what it lacks"),
    "evaluate": Command("pruning.commands.evaluate", "measure an artifact on a task or a text"),
    "task": Command("pruning.commands.task", "make a task from FAQ pages"),
    "knowledge": Command("server.commands.knowledge", "build, search and compare knowledge from documents"),
    "registry": Command("server.commands.artifact.registry", "versions, approvals and promotions of models"),
    "lineage": Command("server.commands.artifact.lineage", "draw what an artifact was made from"),
    "sign": Command("server.commands.artifact.sign", "sign an artifact"),
    "verify": Command("server.commands.artifact.verify", "say who signed an artifact, or which file differs"),
    "export": Command("server.commands.artifact.export", "write an artifact for transformers, vLLM or llama.cpp"),
    "serve": Command("server.commands.serve", "serve the skills of a configuration file"),
    "skills": Command("server.commands.skills.command", "validate skills before they are served"),
    "init": Command("server.commands.start.init", "write settings, a skill and a key for a first server"),
    "doctor": Command("server.commands.start.doctor.command", "check machine, settings and proxy, and say what to do"),
    "chat": Command("server.commands.start.chat", "talk to a model or a server in the terminal"),
    "completion": Command("server.commands.start.completion", "print a shell's completion script"),
    "explain": Command("server.commands.start.explain", "say what an error code means, and what to do"),
    "usage": Command(
        "server.commands.ledger.usage", "tokens by skill, day, model or key, as a table, CSV or JSON lines"
    ),
    "reconcile": Command("server.commands.ledger.reconcile", "prove that the ledger's sums are those of its rows"),
    "conversations": Command("server.commands.conversations", "export or erase what visitors wrote"),
    "feedback": Command("server.commands.feedback", "show visitors' ratings and comments"),
    "audit": Command("server.commands.ledger.audit", "print and verify the audit log"),
    "keys": Command("server.commands.keys.command", "make, list, rotate and revoke API keys; make signing keys"),
    "bundle": Command("server.commands.bundle.command", "write a server and its models for a machine without network"),
    "bench": Command("server.commands.bench.command", "measure an artifact beside its dense base"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. A SecateurError is one sentence on stderr and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"secateur {version('secateur')}")
        return 0
    name, *arguments = words
    if name not in COMMANDS:
        print(f"secateur: {unknown(name)}", file=sys.stderr)
        return 2
    try:
        code: int = import_module(COMMANDS[name].module).main(arguments)
        sys.stdout.flush()
    except SecateurError as error:
        print(f"secateur {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough; the interpreter's last flush must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def unknown(name: str) -> str:
    """The sentence for a command that does not exist, with the nearest one that does."""
    near = get_close_matches(name, COMMANDS, n=1)
    guess = f"did you mean `{near[0]}`? " if near else ""
    return f"there is no command {name!r}; {guess}there are {', '.join(COMMANDS)}"


def usage() -> str:
    """The text of `secateur --help`."""
    lines = [f"  {name:<15}{command.help}" for name, command in COMMANDS.items()]
    more = "`secateur COMMAND --help` says more, and `secateur --version` which release this is."
    return "\n".join(["usage: secateur COMMAND ...", "", *lines, "", more])


if __name__ == "__main__":
    sys.exit(main())
