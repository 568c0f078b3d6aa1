"""`secateur keys create`: makes an API key, of which the server only sees the SHA-256; `signer`: one that signs."""

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path

from server.skills import digest


def main(argv: Sequence[str]) -> int:
    """Run `create` or `signer`."""
    parser = argparse.ArgumentParser(prog="secateur keys", description="Make API keys, and keys that sign artifacts.")
    actions = parser.add_subparsers(required=True, metavar="create | signer")
    actions.add_parser("create", help="make an API key").set_defaults(run=_create)
    signer = actions.add_parser("signer", help="make a key that signs, and the line that says whose it is")
    signer.add_argument("name", type=_name, help="who signs with it")
    signer.add_argument("--key", type=Path, required=True, metavar="PEM", help="the file to write; keep it secret")
    signer.add_argument("--kind", choices=["ed25519", "ec"], help="ec (P-256) with the extra `signing`, else ed25519")
    signer.set_defaults(run=_signer)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)
    return 0


def _create(_: argparse.Namespace) -> None:
    """Print a new key once, and the line that lets it in."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    print(f'The key, shown this once:\n  {key}\nIn the skill\'s TOML file:\n  keys = ["{digest(key)}"]')


def _signer(arguments: argparse.Namespace) -> None:
    """Write a new private key and print its line for signers files."""
    from server.signing import keys, openssf

    kind = arguments.kind or ("ec" if openssf.installed() else "ed25519")
    public = keys.create(arguments.key, elliptic=kind == "ec")
    line = keys.Signer(arguments.name, public).line
    print(f"{arguments.key} is the secret key. The line for the file of signers:\n{line}")


def _name(text: str) -> str:
    """One word, as the line has it."""
    if not text or text.split() != [text] or "#" in text:
        raise argparse.ArgumentTypeError(f"{text!r} must be one word without #")
    return text
