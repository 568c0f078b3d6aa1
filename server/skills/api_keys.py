"""API keys in one file: made, listed and revoked by `secateur keys`, and read by the server before every request.

The file holds the SHA-256 of each key, never a key. Whoever cannot read it lets nobody in: a file that is missing or
damaged is a file without keys.
"""

import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from server.errors import ConfigError
from server.storage.files import replacing
from server.storage.lock import FileLock

KEY_ID = 12  # digits of the digest by which a key is called in lists and in the ledger
Admin = Literal["", "metrics", "all"]
logger = logging.getLogger(__name__)


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """One key; `revoked` is when it stopped to open anything, empty while it does."""

    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    skills: tuple[str, ...]
    created: str
    note: str = ""
    revoked: str = ""
    admin: Admin = ""
    """What it opens of the admin listener: nothing, /metrics, or all."""

    @property
    def opens(self) -> str:
        """The skills' names, and what of the admin listener."""
        return ",".join([*self.skills, *([f"admin:{self.admin}"] if self.admin else [])])

    @property
    def id(self) -> str:
        """What it is called."""
        return self.digest[:KEY_ID]


class Book(Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds."""

    keys: tuple[Key, ...] = ()


class Keys:
    """The keys of `path`, as they are at this moment; None is no file and no key."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._keys: Sequence[Key] = ()

    def find(self, wanted: str) -> Key | None:
        """The key with this digest, unless revoked; compares all of them, so that the time taken tells nothing."""
        found = None
        for key in self._current():
            if hmac.compare_digest(wanted, key.digest) and not key.revoked:
                found = key
        return found

    def _current(self) -> Sequence[Key]:
        """Read again whenever the file is another one: a write replaces it."""
        if self._path is None:
            return ()
        try:
            now = os.stat(self._path)
            seen = (now.st_ino, now.st_mtime_ns, now.st_size)
            if seen != self._seen:
                self._keys, self._seen = read(self._path).keys, seen
        except (OSError, ConfigError) as error:
            if self._keys or self._seen is None:
                logger.error("No key of %s is accepted: %s", self._path, error)
            self._keys, self._seen = (), (0,)
        return self._keys


def digest(key: str) -> str:
    """SHA-256 in hexadecimal, of which a key cannot be made again."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def read(path: Path) -> Book:
    """The keys in the file `path`; raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Book)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is no file of keys: {error}") from None


def check(path: Path | None) -> None:
    """Raise ConfigError where the file is there and cannot be used; one that is missing may be made later."""
    if path is None:
        return
    try:
        path.stat()
    except FileNotFoundError:
        return
    except OSError:
        pass  # reading it says why
    read(path)


def create(path: Path, skills: Sequence[str], note: str, admin: Admin = "") -> tuple[str, Key]:
    """Add a new key for `skills` or the admin listener; returns it, for this once, and what is kept of it."""
    shown = f"sk-{secrets.token_urlsafe(32)}"
    key = Key(digest(shown), tuple(skills), _now(), note, admin=admin)
    with _changing(path) as book:
        _write(path, Book((*book.keys, key)))
    return shown, key


def revoke(path: Path, id: str) -> Key:
    """Let the key open nothing from now on; raises ConfigError if there is none of this id that does."""
    with _changing(path) as book:
        found = [key for key in book.keys if key.id == id and not key.revoked]
        if not found:
            raise ConfigError(f"{path} has no key {id!r} that is not revoked; `secateur keys list` shows them")
        gone = msgspec.structs.replace(found[0], revoked=_now())
        _write(path, Book(tuple(gone if key is found[0] else key for key in book.keys)))
    return gone


@contextmanager
def _changing(path: Path) -> Iterator[Book]:
    """The file's keys, which no other process changes during the `with` block."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(path.name + ".lock"), wait=True, mode=0o600)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    with lock:
        yield read(path) if path.exists() else Book()


def _write(path: Path, book: Book) -> None:
    """Replace the file atomically; a new one is readable by its owner only, an old one keeps owner, group and mode."""
    try:
        with replacing(path) as partial:
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                _inherit(path, handle)
                file.write(msgspec.json.format(msgspec.json.encode(book)))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _inherit(path: Path, handle: int) -> None:
    """Owner, group and mode of the file that is replaced, so that a server of another user can still read it."""
    try:
        old, new = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(handle, old.st_uid, old.st_gid)
    os.fchmod(handle, stat.S_IMODE(old.st_mode))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
