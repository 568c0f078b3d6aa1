"""The console script `secateur`: finds the command's module by name and hands over.

Nothing else is imported before, so that `secateur --help` is fast and the server never sees the pruning code.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from server.errors import SecateurError

COMMANDS = {
    "prune": ("pruning.commands.__main__", "prune a model as a recipe says, and evaluate it"),
    "evaluate": ("pruning.commands.__main__", "measure an artifact on a task or a text"),
    "task": ("pruning.commands.task", "make a task from FAQ pages"),
    "registry": ("server.commands.registry", "versions, approvals and promotions of models"),
    "lineage": ("server.commands.lineage", "draw what an artifact was made from"),
    "sign": ("server.commands.signing", "sign an artifact"),
    "verify": ("server.commands.signing", "say who signed an artifact, or which file differs"),
    "export": ("server.commands.export", "write an artifact for transformers, vLLM or llama.cpp"),
    "serve": ("server.commands.serve", "serve the skills of a configuration file"),
    "skills": ("server.commands.skills", "validate skills before they are served"),
    "usage": ("server.commands.usage", "tokens by skill, day, model or key, as a table, CSV or JSON lines"),
    "reconcile": ("server.commands.usage", "prove that the ledger's sums are those of its rows"),
    "keys": ("server.commands.keys", "make, list and revoke API keys; make keys that sign"),
    "bench": ("server.commands.bench", "measure an artifact beside its dense base"),
}
SHARED = (
    "pruning.commands.__main__",
    "server.commands.signing",
    "server.commands.usage",
)  # each serves two commands, so it is told which


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 2, and one sentence on stderr, for what the user can put right."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"secateur: there is no command {words[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[words[0]]
    try:
        code: int = import_module(module).main(words if module in SHARED else words[1:])
        sys.stdout.flush()
    except SecateurError as error:
        print(f"secateur {words[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough; what Python would still write goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def usage() -> str:
    """The help text."""
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: secateur COMMAND ...", "", *lines, "", "`secateur COMMAND --help` says more."])


if __name__ == "__main__":
    sys.exit(main())
