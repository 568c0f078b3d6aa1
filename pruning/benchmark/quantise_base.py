"""`python -m pruning.benchmark.quantise_base ARTIFACT OUTPUT`: writes the 8-bit rival of an artifact.

OUTPUT is the artifact's dense base in 8 bits and groups of 32, for `secateur bench --quantised`; an existing one stays.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pruning.evaluation.comparison.quantised_base import Codes, quantisations, write
from server.artifact.checkpoint.reader import Artifact, find_base
from server.errors import SecateurError

CODES, GROUP = Codes(8), 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pruning.benchmark.quantise_base", description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--base-cache", type=Path, default=Path("build/base"), help="where imported models are kept")
    arguments = parser.parse_args(argv)
    try:
        base = find_base(arguments.base_cache, Artifact.open(arguments.artifact).lineage.base.digest)
        if not arguments.output.exists():
            shape = next(
                one
                for one in quantisations(base)
                if (one.codes, one.embedding_codes, one.group) == (CODES, CODES, GROUP)
            )
            write(base, shape, arguments.output)
    except SecateurError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
