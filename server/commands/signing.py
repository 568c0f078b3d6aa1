"""`secateur sign` and `secateur verify`: a refusal is one sentence that names the file."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import Lineage
from server.artifact.signing import envelope, openssf
from server.artifact.signing.keys import Signers, hint, read_private


def main(argv: Sequence[str]) -> int:
    """Run the command that the first word names."""
    command, *words = argv
    return sign(words) if command == "sign" else verify(words)


def sign(argv: Sequence[str]) -> int:
    """Sign an artifact whose files and weights are those of its lineage; an earlier signature is replaced."""
    parser = argparse.ArgumentParser(prog="secateur sign", description=sign.__doc__)
    parser.add_argument("artifact", type=Path, help="an artifact's directory")
    parser.add_argument("--key", type=Path, required=True, metavar="PEM", help="a key of `secateur keys signer`")
    arguments = parser.parse_args(argv)
    directory: Path = arguments.artifact.resolve()
    key = read_private(arguments.key)
    _whole(directory)
    if isinstance(key, Ed25519PrivateKey):
        content = envelope.seal(envelope.statement(directory.name, envelope.digests(directory)), key)
    else:
        with TemporaryDirectory() as folder:
            content = openssf.seal(directory, arguments.key, Path(folder))
    envelope.write(directory, content)
    kind = "Ed25519" if isinstance(key, Ed25519PrivateKey) else "OpenSSF model-signing"
    print(f"{directory / record.SIGNATURE}: {kind}, key {hint(key.public_key())[:16]}")
    return 0


def verify(argv: Sequence[str]) -> int:
    """Say who signed an artifact, or name the file that is not as it was signed and recorded."""
    parser = argparse.ArgumentParser(prog="secateur verify", description=verify.__doc__)
    parser.add_argument("artifact", type=Path, help="an artifact's directory")
    parser.add_argument("--signers", type=Path, required=True, metavar="FILE", help="lines of `secateur keys signer`")
    arguments = parser.parse_args(argv)
    signer = envelope.verify(arguments.artifact, Signers.read(arguments.signers))
    address = record.address(_whole(arguments.artifact))
    print(f"signed by {signer.name}; record {address}; every file is as it was signed")
    return 0


def _whole(directory: Path) -> Lineage:
    from server.artifact.checkpoint.reader import whole  # late: torch takes seconds, and a wrong key is told at once

    return whole(directory)
