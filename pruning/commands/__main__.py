"""`python -m pruning.commands prune | evaluate | import ...`: starts a process without the console script."""

import sys
from collections.abc import Sequence

from pruning.commands import evaluate, import_base, prune

COMMANDS = {"prune": prune.main, "evaluate": evaluate.main, "import": import_base.main}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; returns its exit code."""
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or [""]
    if name not in COMMANDS:
        print(f"usage: python -m pruning.commands {' | '.join(COMMANDS)} ...", file=sys.stderr)
        return 2
    return COMMANDS[name](arguments)


if __name__ == "__main__":
    sys.exit(main())
