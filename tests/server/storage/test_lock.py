"""The lock of a directory: one holder, and a clear word where the file system has no locks."""

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from server.errors import Busy, Unlockable
from server.storage.lock import FileLock, locked
from tests.support.harness import until


def test_a_second_holder_learns_what_the_first_does(tmp_path: Path) -> None:
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


def test_a_lock_names_its_holder_and_can_be_waited_for(tmp_path: Path) -> None:
    file, taken = tmp_path / "lock", threading.Event()

    def wait() -> None:
        with FileLock(file, wait=True):
            taken.set()

    with FileLock(file, mode=0o600):
        assert file.stat().st_mode & 0o777 == 0o600
        with pytest.raises(Busy) as error:
            FileLock(file)
        assert error.value.process == str(os.getpid())
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not taken.is_set()
    waiting.join()
    assert taken.is_set()


def test_work_that_another_process_does_can_be_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, began, entered = tmp_path / "lock", threading.Event(), threading.Event()

    def second() -> None:
        began.set()
        with locked(file, "importing a model", wait=True):
            entered.set()

    with caplog.at_level("INFO", logger="server.storage.lock"), locked(file, "importing a model"):
        waiting = threading.Thread(target=second)
        waiting.start()
        until(lambda: "waiting for another secateur, which is importing a model" in caplog.text)
        assert began.is_set()
        assert not entered.is_set()
    waiting.join()
    assert entered.is_set()
