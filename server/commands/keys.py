"""`secateur keys`: makes, lists and revokes API keys, which files hold as SHA-256; `signer`: keys that sign."""

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path

from server.errors import ConfigError
from server.skills import api_keys


def main(argv: Sequence[str]) -> int:
    """Run one of the actions."""
    parser = argparse.ArgumentParser(prog="secateur keys", description="API keys, site keys, and keys that sign.")
    actions = parser.add_subparsers(required=True, metavar="create | list | revoke | site | signer")
    create = actions.add_parser("create", help="make an API key, shown once")
    create.add_argument("--file", type=Path, help="the server's file of `keys`; left out, a line for a skill's file")
    create.add_argument("--skill", action="append", default=[], help="a skill that it opens; may be repeated")
    create.add_argument("--admin", choices=["metrics", "all"], default="", help="what of the admin listener it opens")
    create.add_argument("--note", default="", help="what it is for")
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="show the keys of a file, and which are revoked")
    listing.add_argument("file", type=Path)
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="let a key open nothing from now on")
    revoke.add_argument("file", type=Path)
    revoke.add_argument("id", help="as `list` shows it")
    revoke.set_defaults(run=_revoke)
    site = actions.add_parser("site", help="make a site key, which is public, for the widget's line")
    site.set_defaults(run=_site)
    signer = actions.add_parser("signer", help="make a key that signs, and the line that says whose it is")
    signer.add_argument("name", type=_name, help="who signs with it")
    signer.add_argument("--key", type=Path, required=True, metavar="PEM", help="the file to write; keep it secret")
    signer.add_argument("--kind", choices=["ed25519", "ec"], help="ec (P-256) with the extra `signing`, else ed25519")
    signer.set_defaults(run=_signer)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)
    return 0


def _create(arguments: argparse.Namespace) -> None:
    """Print a new key once, and where it lets in."""
    if arguments.file is None and not arguments.admin:
        key = f"sk-{secrets.token_urlsafe(32)}"
        line = f'keys = ["{api_keys.digest(key)}"]'
        print(f"The key, shown this once:\n  {key}\nIn the skill's TOML file:\n  {line}")
        return
    if arguments.file is None:
        raise ConfigError("name the file of `admin_keys` that the key is added to: --file FILE")
    if not arguments.skill and not arguments.admin:
        raise ConfigError("name the skills that the key opens: --skill NAME; or --admin metrics, or --admin all")
    key, kept = api_keys.create(arguments.file, arguments.skill, arguments.note, arguments.admin)
    print(f"The key, shown this once:\n  {key}\nIt is {kept.id} in {arguments.file}: {kept.opens}")


def _list(arguments: argparse.Namespace) -> None:
    """One line for each key."""
    for key in api_keys.read(arguments.file).keys:
        state = f"revoked {key.revoked}" if key.revoked else f"created {key.created}"
        print("  ".join([key.id, state, key.opens, key.note]).rstrip())


def _revoke(arguments: argparse.Namespace) -> None:
    """Say what was revoked."""
    gone = api_keys.revoke(arguments.file, arguments.id)
    print(f"{gone.id} opens nothing any more: the server refuses it from the next request on.")


def _site(_: argparse.Namespace) -> None:
    """Print a new site key and its two lines."""
    key = f"pk_{secrets.token_urlsafe(18)}"
    print(f'In the skill\'s TOML file:\n  site_keys = ["{key}"]\nIn the widget\'s line:\n  data-key="{key}"')


def _signer(arguments: argparse.Namespace) -> None:
    """Write a new private key and print its line for signers files."""
    from server.artifact.signing import keys, openssf

    kind = arguments.kind or ("ec" if openssf.installed() else "ed25519")
    public = keys.create(arguments.key, elliptic=kind == "ec")
    line = keys.Signer(arguments.name, public).line
    print(f"{arguments.key} is the secret key. The line for the file of signers:\n{line}")


def _name(text: str) -> str:
    """One word, as the line has it."""
    if not text or text.split() != [text] or "#" in text:
        raise argparse.ArgumentTypeError(f"{text!r} must be one word without #")
    return text
