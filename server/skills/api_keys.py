"""The file of API keys: written by `secateur keys`, read again by the server whenever it changes.

It holds the SHA-256 of each key, never a key. It fails closed: a missing or damaged file opens nothing.
"""

import hashlib
import hmac
import logging
import os
import pwd
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, TypedDict, Unpack

import msgspec
from msgspec import Meta, Struct, convert
from msgspec.structs import asdict, replace

from server.errors import ConfigError
from server.skills.key_limits import Allowance, KeyLimits
from server.storage.files import replacing
from server.storage.lock import FileLock

KEY_ID = 12  # digits of the digest that identify a key in lists and in the ledger
Admin = Literal["", "metrics", "all"]
logger = logging.getLogger(__name__)


class Key(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An API key; times are ISO 8601."""

    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the key."""
    skills: tuple[str, ...]
    """Names of the skills that it opens."""
    created: str
    note: str = ""
    revoked: str = ""
    """When it was revoked; empty while it is valid."""
    admin: Admin = ""
    """What it opens of the admin listener: nothing, /metrics, or everything."""
    expires: str = ""
    """From when on it is refused; empty for never."""
    replaces: str = ""
    """The id of the key that it was made to replace."""
    created_by: str = ""
    """The account that ran `secateur keys`; likewise `revoked_by` and `limited_by`."""
    revoked_by: str = ""
    limits: KeyLimits | None = None
    limited: str = ""
    """When its limits were last changed; empty if they never were."""
    limited_by: str = ""
    groups: tuple[str, ...] = ()
    """What its holder may see of a skill's knowledge beside what everyone may; a rotated key keeps them."""

    @property
    def expired(self) -> bool:
        """Whether it has expired; a time that cannot be read has passed."""
        try:
            return bool(self.expires) and datetime.fromisoformat(self.expires) <= datetime.now(UTC)
        except (ValueError, TypeError):
            return True

    @property
    def opens(self) -> str:
        """Names of skills and `admin:` scope, comma-separated."""
        return ",".join([*self.skills, *([f"admin:{self.admin}"] if self.admin else [])])

    @property
    def id(self) -> str:
        """The first digits of the digest."""
        return self.digest[:KEY_ID]


class Optional(TypedDict, total=False):
    """What a new key may have beside its skills, as in `Key`."""

    admin: Admin
    expires: str
    limits: KeyLimits | None
    groups: tuple[str, ...]


class KeyFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file."""

    keys: tuple[Key, ...] = ()


class Keys:
    """The current keys of the file `path`; no keys if it is None."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._keys: Sequence[Key] = ()
        self._allowances: Mapping[str, Allowance] = {}

    def find(self, wanted: str) -> Key | None:
        """The key with this digest, unless revoked or expired."""
        found = self.look_up(wanted)
        return None if found is None or found.revoked or found.expired else found

    def look_up(self, wanted: str) -> Key | None:
        """The key with this digest, valid or not; compares all of them, so that the time taken tells nothing."""
        found = None
        for key in self._current():
            if hmac.compare_digest(wanted, key.digest):
                found = key
        return found

    def allowance(self, id: str) -> Allowance:
        """The limits of the key with this id; without limits if the file does not have it."""
        self._current()
        return self._allowances.get(id, Allowance())

    def limited(self) -> Sequence[Allowance]:
        """The limits of all valid keys that have some, once for keys that share them by rotation."""
        valid = [key.id for key in self._current() if not key.revoked and not key.expired]
        found = {one.owner: one for one in map(self.allowance, valid) if one.limits != KeyLimits()}
        return list(found.values())

    def _current(self) -> Sequence[Key]:
        """The file's keys, read again if it was replaced."""
        if self._path is None:
            return ()
        try:
            now = os.stat(self._path)
            seen = (now.st_ino, now.st_mtime_ns, now.st_size)
            if seen != self._seen:
                self._keys, self._seen = read(self._path).keys, seen
                self._allowances = allowances(self._keys)
        except (OSError, ConfigError) as error:
            if self._keys or self._seen is None:
                logger.error("All keys of %s are refused: %s", self._path, error)
            self._keys, self._seen, self._allowances = (), (0,), {}
        return self._keys


def digest(key: str) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def read(path: Path) -> KeyFile:
    """Read the file; raises ConfigError if it is missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeyFile)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not a key file: {error}") from None


def check(path: Path | None) -> None:
    """Raise ConfigError if the file exists but cannot be used; a missing one may be created later."""
    if path is None:
        return
    try:
        path.stat()
    except FileNotFoundError:
        return
    except OSError:
        pass  # `read` says why
    read(path)


def allowances(keys: Iterable[Key]) -> dict[str, Allowance]:
    """Each key's allowance by its id; keys are in the order of their creation."""
    known = {key.id: key for key in keys}
    oldest: dict[str, str] = {}
    families: dict[str, tuple[str, ...]] = {}
    for key in known.values():
        first = oldest[key.id] = oldest.get(key.replaces, key.id)
        families[first] = (key.id, *families.get(first, ()))
    return {id: Allowance(key.limits or KeyLimits(), families[oldest[id]]) for id, key in known.items()}


def create(path: Path, skills: Sequence[str], note: str, **more: Unpack[Optional]) -> tuple[str, Key]:
    """Add a key for `skills` or the admin listener; returns the key, which is not stored, and its entry."""
    shown, key = _new(Key("", tuple(skills), _now(), note, created_by=_account(), **more))
    with _changing(path) as file:
        _write(path, KeyFile((*file.keys, key)))
    return shown, key


def revoke(path: Path, id: str) -> Key:
    """Revoke the key with this id; raises ConfigError if there is none that is not revoked."""
    with _changing(path) as file:
        old = _unrevoked(path, file, id)
        gone = replace(old, revoked=_now(), revoked_by=_account())
        _write(path, KeyFile(tuple(gone if key is old else key for key in file.keys)))
    return gone


def limit(path: Path, id: str, changes: Mapping[str, int | None]) -> tuple[Key, ...]:
    """Change some limits of a key and of all keys that share them by rotation; returns the changed keys.

    Raises ConfigError if there is no such key that is not revoked.
    """
    with _changing(path) as file:
        chosen = _unrevoked(path, file, id)
        kept = asdict(chosen.limits) if chosen.limits else {}
        limits = convert({**kept, **changes}, KeyLimits)
        marks = {"limits": limits if str(limits) else None, "limited": _now("milliseconds"), "limited_by": _account()}
        shared = allowances(file.keys)[id].ids
        new = {key.id: replace(key, **marks) for key in file.keys if key.id in shared and not key.revoked}
        _write(path, KeyFile(tuple(new.get(key.id, key) for key in file.keys)))
    return tuple(new.values())


def rotate(path: Path, id: str, grace: timedelta, lifetime: timedelta | None = None) -> tuple[str, Key, Key]:
    """Make a key with the same access, groups and limits, valid for `lifetime`.

    The old one expires after `grace` unless it did earlier; until then both share their limits and budgets. Returns
    the new key, its entry and the old one's; raises ConfigError if the old one is revoked or expired.
    """
    with _changing(path) as file:
        old = _unrevoked(path, file, id)
        if old.expired:
            raise ConfigError(f"the key {id} expired at {old.expires}: make a new one with `secateur keys create`")
        ends = min(filter(None, (old.expires, after(grace))), key=datetime.fromisoformat)
        expires = after(lifetime) if lifetime else ""
        fresh = replace(old, created=_now(), created_by=_account(), limited="", limited_by="")
        shown, new = _new(replace(fresh, expires=expires, replaces=id))
        ending = replace(old, expires=ends)
        _write(path, KeyFile((*(ending if key is old else key for key in file.keys), new)))
    return shown, new, ending


def after(span: timedelta) -> str:
    """The time `span` from now, UTC, ISO 8601."""
    return (datetime.now(UTC) + span).isoformat(timespec="seconds")


def _new(blank: Key) -> tuple[str, Key]:
    """A random key, and `blank` with its digest."""
    shown = f"sk-{secrets.token_urlsafe(32)}"
    return shown, replace(blank, digest=digest(shown))


def _unrevoked(path: Path, file: KeyFile, id: str) -> Key:
    found = [key for key in file.keys if key.id == id and not key.revoked]
    if not found:
        raise ConfigError(f"{path} has no valid key {id!r}; `secateur keys list` shows all, revoked ones too")
    return found[0]


def _account() -> str:
    """The account that runs this program: its name, or its number if it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@contextmanager
def _changing(path: Path) -> Iterator[KeyFile]:
    """Context manager: lock the key file against other processes and yield its keys; empty if it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(path.name + ".lock"), wait=True, mode=0o600)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    with lock:
        yield read(path) if path.exists() else KeyFile()


def _write(path: Path, content: KeyFile) -> None:
    """Replace the file atomically; a new one is readable by its owner only, an old one keeps owner, group and mode."""
    try:
        with replacing(path) as partial:
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                _inherit(path, handle)
                file.write(msgspec.json.format(msgspec.json.encode(content)))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _inherit(path: Path, handle: int) -> None:
    """Keep the replaced file's owner, group and mode, so that a server run by another user can still read it."""
    try:
        old, new = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(handle, old.st_uid, old.st_gid)
    os.fchmod(handle, stat.S_IMODE(old.st_mode))


def _now(precision: str = "seconds") -> str:
    return datetime.now(UTC).isoformat(timespec=precision)
