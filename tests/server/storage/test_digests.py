"""Digests are remembered only where a change of the file would show."""

import hashlib
import time
from pathlib import Path
from typing import IO

import pytest

from server.storage.digests import FileDigests


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_change_right_after_hashing_is_seen(tmp_path: Path) -> None:
    """Many times, as the kernel's clock may stand still between two writes."""
    digests, path = FileDigests(), tmp_path / "file"
    path.write_bytes(b"0000")
    for number in range(50):
        with path.open("r+b") as file:
            file.write(b"%04d" % number)
        assert digests.of(path) == sha256(b"%04d" % number)


def test_a_file_changed_in_the_future_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the clock was set back, a second change could leave it the same times."""
    digests, path, names, original = FileDigests(), tmp_path / "file", [], hashlib.file_digest

    def watched(file: IO[bytes], name: str) -> object:
        names.append(name)
        return original(file, name)  # type: ignore[arg-type]

    path.write_bytes(b"content")
    monkeypatch.setattr(hashlib, "file_digest", watched)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 3600)
    assert digests.of(path) == digests.of(path) == sha256(b"content")
    monkeypatch.undo()
    monkeypatch.setattr(hashlib, "file_digest", watched)
    assert digests.of(path) == digests.of(path) == sha256(b"content")
    assert len(names) == 3
