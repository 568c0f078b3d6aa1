"""`secateur sign ARTIFACT --key PEM`: signs every file of an artifact, after checking it against its lineage."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.artifact.checkpoint import lineage as record
from server.artifact.signing import envelope, openssf
from server.artifact.signing.keys import hint, read_private
from server.command_line import Parser
from server.storage.digests import FileDigests


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur sign",
        description="Sign an artifact whose files and weights match its lineage; replaces an earlier signature.",
    )
    options.add_argument("artifact", type=Path, help="an artifact's directory")
    options.add_argument(
        "--key", type=Path, required=True, metavar="PEM", help="a private key made by `secateur keys signer`"
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Write the signature and print its kind and key; returns 0. Raises ArtifactError or SignatureError."""
    arguments = parser().parse_args(argv)
    directory: Path = arguments.artifact.resolve()
    key = read_private(arguments.key)
    from server.artifact.checkpoint.reader import (
        verified_record,  # late: torch takes seconds, a wrong key fails at once
    )

    digests = FileDigests()
    verified_record(directory, digests)
    if isinstance(key, Ed25519PrivateKey):
        kind = "Ed25519"
        content = envelope.seal(envelope.statement(directory.name, envelope.file_digests(directory, digests)), key)
    else:
        kind = "OpenSSF model-signing"
        with TemporaryDirectory() as folder:
            content = openssf.seal(directory, arguments.key, Path(folder))
    envelope.write(directory, content)
    print(f"{directory / record.SIGNATURE}: {kind}, key {hint(key.public_key())[:16]}")
    return 0
