"""`secateur verify ARTIFACT --signers FILE`: prints who signed an artifact, or refuses and names the differing file."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from server.artifact.checkpoint import lineage as record
from server.artifact.signing import envelope
from server.artifact.signing.keys import Signers
from server.command_line import Parser
from server.storage.digests import FileDigests


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur verify",
        description="Print who signed an artifact, or name the file that differs from what was signed and recorded.",
    )
    options.add_argument("artifact", type=Path, help="an artifact's directory")
    options.add_argument(
        "--signers",
        type=Path,
        required=True,
        metavar="FILE",
        help="the accepted signers: lines printed by `secateur keys signer`",
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Check the signature, then the files against the lineage; returns 0. Raises SignatureError or ArtifactError."""
    arguments = parser().parse_args(argv)
    digests = FileDigests()
    signer = envelope.verify(arguments.artifact, Signers.read(arguments.signers), digests)
    from server.artifact.checkpoint.reader import verified_record  # late: torch takes seconds

    address = record.address(verified_record(arguments.artifact, digests))
    print(f"signed by {signer.name}; record {address}; every file is as it was signed")
    return 0
