"""The lock of a directory: one holder, and a clear word where the file system has no locks."""

import errno
import fcntl
from pathlib import Path

import pytest

from server.errors import Busy, Unlockable
from server.storage.lock import locked


def test_a_second_holder_is_told_what_the_first_does(tmp_path: Path) -> None:
    file = tmp_path / "new" / "lock"
    with locked(file, "making a model"), pytest.raises(Busy, match="another secateur is making a model: wait"):
        locked(file, "making a model").__enter__()
    with locked(file, "making another"):
        pass


def test_a_file_system_without_locks_is_not_called_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(
        Unlockable, match=r"lock cannot be locked \(No locks available\): use a directory on another disk"
    ):
        locked(tmp_path / "lock", "testing").__enter__()
