"""`secateur keys`: makes, lists, limits, rotates and revokes API keys, stored as SHA-256; makes signing keys."""

import argparse
import secrets
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from msgspec.structs import asdict

from server.command_line import Parser, print_json
from server.commands.keys.options import LIMITS, add_limits, duration, group_name, limit, limit_or_none, signer_name
from server.config import SETTINGS, load
from server.errors import ConfigError
from server.skills import api_keys
from server.skills.catalogue import Skills
from server.skills.key_limits import KeyLimits
from server.storage.toml import nearest

GRACE = timedelta(hours=24)


def parser() -> argparse.ArgumentParser:
    """The actions and their options."""
    top = Parser(prog="secateur keys", description="API keys, site keys, and signing keys.")
    actions = top.add_subparsers(required=True, metavar="create | list | limit | rotate | revoke | site | signer")
    _add_create(actions)
    listing = actions.add_parser("list", help="list the keys of a file, the revoked ones too")
    listing.add_argument("file", type=Path, help="a file written by `create --file`")
    _add_json(listing)
    listing.set_defaults(run=_list)
    _add_limit(actions)
    _add_rotate(actions)
    revoke = actions.add_parser("revoke", help="revoke a key from the next request on")
    revoke.add_argument("file", type=Path, help="a file written by `create --file`")
    revoke.add_argument("id", help="the key's id, as `list` prints it")
    revoke.set_defaults(run=_revoke)
    site = actions.add_parser("site", help="make a site key, which is public, for the widget's script line")
    site.set_defaults(run=_site)
    _add_signer(actions)
    return top


def _add_json(action: argparse.ArgumentParser) -> None:
    action.add_argument("--json", action="store_true", help="as JSON, for scripts")


def _add_signer(actions: "argparse._SubParsersAction[Parser]") -> None:
    """`signer` and its options."""
    signer = actions.add_parser("signer", help="make a signing key, and print its line for files of signers")
    signer.add_argument("name", type=signer_name, help="whose key it is: one word")
    signer.add_argument(
        "--key", type=Path, required=True, metavar="PEM", help="the file to write the private key to; keep it secret"
    )
    signer.add_argument(
        "--kind",
        choices=["ed25519", "ec"],
        help="the algorithm; ec is P-256 (default: ec if the extra `signing` is installed, else ed25519)",
    )
    signer.add_argument(
        "--role",
        action="append",
        default=[],
        choices=["sign", "evaluate", "approve", "promote"],
        help="what the key may sign: artifacts, results, approvals, moves; may be repeated (default: all)",
    )
    signer.set_defaults(run=_signer)


def _add_create(actions: "argparse._SubParsersAction[Parser]") -> None:
    """`create` and its options."""
    create = actions.add_parser("create", help="make an API key and print it once")
    create.add_argument(
        "--file",
        type=Path,
        help="add the key to this file, the server's `keys` or `admin_keys` (default: print a line for a skill's file)",
    )
    create.add_argument("--skill", action="append", default=[], help="a skill that the key opens; may be repeated")
    create.add_argument(
        "--admin", choices=["metrics", "all"], default="", help="what the key opens on the admin listener"
    )
    create.add_argument(
        "--group",
        action="append",
        default=[],
        type=group_name,
        help="a group whose documents the key may see in its skills' knowledge; may be repeated",
    )
    create.add_argument("--note", default="", help="a reminder of what the key is for, kept in the file")
    create.add_argument(
        "--expires", type=duration, metavar="SPAN", help="refuse the key after this time, such as 90d, 12h or 30m"
    )
    _add_json(create)
    add_limits(create, limit, "N")
    create.set_defaults(run=_create)


def _add_limit(actions: "argparse._SubParsersAction[Parser]") -> None:
    """`limit` and its options."""
    changing = actions.add_parser("limit", help="change a key's limits from the next request on")
    changing.add_argument("file", type=Path, help="a file written by `create --file`")
    changing.add_argument("id", help="the key's id, as `list` prints it")
    add_limits(changing, limit_or_none, "N|none")
    changing.set_defaults(run=_limit)


def _add_rotate(actions: "argparse._SubParsersAction[Parser]") -> None:
    """`rotate` and its options."""
    rotate = actions.add_parser("rotate", help="make a key that opens the same, and let the old one expire")
    rotate.add_argument("file", type=Path, help="a file written by `create --file`")
    rotate.add_argument("id", help="the old key's id, as `list` prints it")
    rotate.add_argument(
        "--grace", type=duration, default=GRACE, metavar="SPAN", help="how long the old key stays valid (default: 24h)"
    )
    rotate.add_argument(
        "--expires", type=duration, metavar="SPAN", help="refuse the new key after this time, such as 90d"
    )
    _add_json(rotate)
    rotate.set_defaults(run=_rotate)


def main(argv: Sequence[str]) -> int:
    """Run one action; returns 0. Raises ConfigError or SignatureError."""
    arguments = parser().parse_args(argv)
    arguments.run(arguments)
    return 0


def _create(arguments: argparse.Namespace) -> None:
    """Print a new key, and store its digest in --file or print the line that does."""
    limits = KeyLimits(**given) if (given := _given(arguments)) else None
    _check_create(arguments, limited=limits is not None)
    if arguments.file is None:
        key = f"sk-{secrets.token_urlsafe(32)}"
        if arguments.json:
            print_json({"key": key, "digest": api_keys.digest(key)})
            return
        line = f'keys = ["{api_keys.digest(key)}"]'
        print(f"The key, shown this once:\n  {key}\nIn the skill's TOML file:\n  {line}")
        return
    expires = api_keys.after(arguments.expires) if arguments.expires else ""
    groups = tuple(dict.fromkeys(arguments.group))
    more: api_keys.Optional = {"admin": arguments.admin, "expires": expires, "limits": limits, "groups": groups}
    _check_skills(arguments.file, arguments.skill)
    key, kept = api_keys.create(arguments.file, arguments.skill, arguments.note, **more)
    if limits:
        _warn(limits)
    if arguments.json:
        print_json({"key": key, **_fields(kept)})
        return
    print(f"The key, shown this once:\n  {key}\nIt is {kept.id} in {arguments.file}: {kept.opens}")
    if groups:
        print(f"Its groups: {', '.join(groups)}")
    if expires:
        print(f"It expires at {expires}.")
    if limits:
        print(f"Its limits: {limits}")


def _check_create(arguments: argparse.Namespace, *, limited: bool) -> None:
    """Raise ConfigError for options that do not go together."""
    if arguments.file is None:
        if arguments.expires:
            raise ConfigError("--expires needs the file that keeps the time: --file FILE")
        if limited or arguments.group:
            what = "limits of its own" if limited else "groups"
            raise ConfigError(f"a key has {what} only in a file of keys: --file FILE")
        if arguments.admin:
            raise ConfigError("--admin needs the file of `admin_keys` to add the key to: --file FILE")
    elif not arguments.skill and not arguments.admin:
        raise ConfigError("name the skills that the key opens: --skill NAME; or --admin metrics, or --admin all")
    elif (limited or arguments.group) and not arguments.skill:
        what = "limits hold for the replies" if limited else "groups are for the knowledge"
        raise ConfigError(f"{what} of skills: name the skills that the key opens, --skill NAME")


def _check_skills(file: Path, names: Sequence[str]) -> None:
    """Raise ConfigError for a skill that the key file's server does not have; warn if no server names the file."""
    for path in dict.fromkeys((file.parent / SETTINGS, Path(SETTINGS))):
        if not path.exists():
            continue
        config = load(path)
        if config.keys is None or config.keys.resolve() != file.resolve():
            continue
        known = [skill.name for skill in Skills.read(config.skills)]
        for name in names:
            if name not in known:
                guess = nearest(name, known, "''")
                raise ConfigError(f"{config.skills} has no skill {name!r}; {guess}there are {', '.join(known)}")
        return
    if names:
        print(f"warning: no {SETTINGS} here or beside {file} names it, so no name was checked", file=sys.stderr)


def _list(arguments: argparse.Namespace) -> None:
    """Print one line per key, or all fields of each."""
    keys = api_keys.read(arguments.file).keys
    if arguments.json:
        print_json([_fields(key) for key in keys])
        return
    for key in keys:
        state = f"revoked {key.revoked}" if key.revoked else f"created {key.created}"
        if key.expires and not key.revoked:
            state += f"  {'expired' if key.expired else 'expires'} {key.expires}"
        groups = f"groups={','.join(key.groups)}" if key.groups else ""
        print("  ".join(part for part in (key.id, state, key.opens, groups, str(key.limits or ""), key.note) if part))


def _limit(arguments: argparse.Namespace) -> None:
    """Change limits and print the key's limits now."""
    changes = _given(arguments)
    if not changes:
        raise ConfigError(f"name a limit to change: {', '.join('--' + name.replace('_', '-') for name in LIMITS)}")
    for key in api_keys.limit(arguments.file, arguments.id, changes):
        print(f"{key.id} from the next request on: {key.limits or 'no limits of its own'}")
    if key.limits:
        _warn(key.limits)


def _given(arguments: argparse.Namespace) -> dict[str, int | None]:
    """The limits given as options."""
    return {name: value for name, value in vars(arguments).items() if name in LIMITS}


def _warn(limits: KeyLimits) -> None:
    """Print a warning for limits that cannot matter."""
    if limits.tokens_per_day and limits.tokens_per_month and limits.tokens_per_day > limits.tokens_per_month:
        print("warning: tokens_per_day above tokens_per_month limits nothing", file=sys.stderr)


def _rotate(arguments: argparse.Namespace) -> None:
    """Print the new key, and when the old one expires."""
    shown, new, old = api_keys.rotate(arguments.file, arguments.id, arguments.grace, arguments.expires)
    if arguments.json:
        print_json({"key": shown, **_fields(new), "old": _fields(old)})
        return
    print(f"The key, shown this once:\n  {shown}\nIt is {new.id} in {arguments.file}: {new.opens}")
    print(f"{old.id}, which it replaces, is refused from {old.expires} on.")


def _revoke(arguments: argparse.Namespace) -> None:
    """Revoke a key and print its id."""
    gone = api_keys.revoke(arguments.file, arguments.id)
    print(f"{gone.id} is revoked: the server refuses it from the next request on.")


def _site(_: argparse.Namespace) -> None:
    """Print a new site key, as the lines for the skill's file and for the widget."""
    key = f"pk_{secrets.token_urlsafe(18)}"
    print(f'In the skill\'s TOML file:\n  site_keys = ["{key}"]\nIn the widget\'s line:\n  data-key="{key}"')


def _signer(arguments: argparse.Namespace) -> None:
    """Write a new private key, and print the line that accepts it in a file of signers."""
    from server.artifact.signing import keys, openssf

    kind = arguments.kind or ("ec" if openssf.installed() else "ed25519")
    public = keys.create(arguments.key, elliptic=kind == "ec")
    line = keys.Signer(arguments.name, public, tuple(arguments.role) or keys.ROLES).line
    print(f"{arguments.key} is the secret key. The line for the file of signers:\n{line}")


def _fields(key: api_keys.Key) -> dict[str, object]:
    """What JSON says of a key: its id in place of its digest, and every field of the file."""
    fields = {name: value for name, value in asdict(key).items() if name != "digest"}
    return {"id": key.id, "expired": key.expired, **fields}
