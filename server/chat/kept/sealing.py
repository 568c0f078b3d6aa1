"""Encrypts kept texts: AES-256-GCM with a random nonce, bound to the row, under the keys of one file.

The file has one key a line, 32 bytes in base64. The first encrypts, all decrypt: a new first line rotates the key.
"""

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.errors import ConfigError, SecateurError
from server.storage.files import write_atomically

PLAIN, SEALED = b"\x00", b"\x01"
"""The first byte of a stored value."""
KEY, NAME, NONCE = 32, 4, 12
"""Bytes of a key, of a key's name in a value, and of a nonce."""


class Unreadable(SecateurError):
    """A kept value that none of the keys decrypts, or that was changed or moved to another row."""


class Seal:
    """Encrypts with the first of `keys`; without keys values stay plain."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = {_name(key): AESGCM(key) for key in reversed(keys)}
        self._first = _name(keys[0]) if keys else b""

    @classmethod
    def read(cls, path: Path) -> "Seal":
        """The keys of a file; raises ConfigError."""
        return cls(_keys(path))

    def close(self, value: bytes, row: str) -> bytes:
        """What to store for `value` in the row named `row`."""
        if not self._first:
            return PLAIN + value
        nonce = os.urandom(NONCE)
        return SEALED + self._first + nonce + self._keys[self._first].encrypt(nonce, value, row.encode())

    def open(self, stored: bytes, row: str) -> bytes:
        """The value that was stored in the row named `row`; raises Unreadable."""
        if stored[:1] == PLAIN:
            return stored[1:]
        name, nonce = stored[1 : 1 + NAME], stored[1 + NAME : 1 + NAME + NONCE]
        if (key := self._keys.get(name)) is None:
            raise Unreadable("it was encrypted with a key that the file of `conversation_key` does not have")
        try:
            return key.decrypt(nonce, stored[1 + NAME + NONCE :], row.encode())
        except InvalidTag:
            raise Unreadable("it was changed since it was encrypted") from None


def add_key(path: Path) -> int:
    """Make a key the first of the file, created for its owner only; returns the number of keys. Raises ConfigError."""
    keys = [secrets.token_bytes(KEY), *(_keys(path) if path.exists() else ())]
    lines = "".join(f"{base64.b64encode(key).decode()}\n" for key in keys)
    try:
        if not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        partial = path.with_name(path.name + ".partial")
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        write_atomically(path, lines.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return len(keys)


def _keys(path: Path) -> list[bytes]:
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"{path} cannot be read: {why}. `secateur conversations key --file {path}` makes it"
        ) from None
    try:
        keys = [base64.b64decode(line, validate=True) for line in lines]
    except binascii.Error:
        keys = []
    if not keys or {len(key) for key in keys} != {KEY}:
        raise ConfigError(f"{path} must have one key a line, each {KEY} bytes in base64, the one that encrypts first")
    return keys


def _name(key: bytes) -> bytes:
    return hashlib.sha256(b"secateur kept texts" + key).digest()[:NAME]
