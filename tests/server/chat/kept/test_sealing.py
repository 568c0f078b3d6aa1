"""Encryption of kept texts: read back by its own row and keys only, and rotated by a new first line."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.chat.kept.sealing import Seal, Unreadable, add_key
from server.chat.kept.texts import Texts
from server.errors import ConfigError


def test_a_value_opens_in_its_own_row_with_its_own_key() -> None:
    seal = Seal([b"a" * 32])
    stored = seal.close(b"hello", "row 1")
    assert seal.open(stored, "row 1") == b"hello"
    assert AESGCM(b"a" * 32).decrypt(stored[5:17], stored[17:], b"row 1") == b"hello", "it is AES-256-GCM"
    assert stored != seal.close(b"hello", "row 1")
    with pytest.raises(Unreadable, match="was changed"):
        seal.open(stored, "row 2")
    with pytest.raises(Unreadable, match="was changed"):
        seal.open(stored[:-1] + bytes([stored[-1] ^ 1]), "row 1")
    with pytest.raises(Unreadable, match="a key that the file"):
        Seal([b"b" * 32]).open(stored, "row 1")


def test_a_new_first_key_encrypts_and_the_old_one_still_decrypts(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    assert add_key(path) == 1
    assert path.stat().st_mode & 0o777 == 0o600
    old = Seal.read(path)
    stored = old.close(b"hello", "row")
    assert add_key(path) == 2
    assert path.stat().st_mode & 0o777 == 0o600
    new = Seal.read(path)
    assert new.open(stored, "row") == b"hello"
    with pytest.raises(Unreadable):
        old.open(new.close(b"hello", "row"), "row")


@pytest.mark.parametrize("content", ["", "word", base64.b64encode(b"short").decode()])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ConfigError, match="one key a line"):
        Seal.read(path)
    with pytest.raises(ConfigError, match="`secateur conversations key"):
        Seal.read(tmp_path / "missing")


def test_a_database_opens_with_its_keys_only(tmp_path: Path) -> None:
    path = str(tmp_path / "c.sqlite3")
    texts = Texts(path, Seal([b"a" * 32]))
    key, name = texts.signing_key, texts.visitor("ada")
    texts.close()
    for seal in (Seal(), Seal([b"b" * 32])):
        with pytest.raises(ConfigError, match="conversation_key"):
            Texts(path, seal)
    again = Texts(path, Seal([b"b" * 32, b"a" * 32]))
    assert (again.signing_key, again.visitor("ada")) == (key, name)
    assert again.visitor("") == ""
    assert "ada" not in name
    again.close()
