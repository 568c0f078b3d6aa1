"""Exclusive locks between processes (flock), which the kernel releases however their holder ends."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from server.errors import Busy, Unlockable

logger = logging.getLogger(__name__)


class FileLock:
    """Holds an exclusive lock on `file`, created if missing, until `release` or the end of the `with` block.

    With `wait`, blocks until the lock is free. The holder's process id is written to the file, for people to read.
    Raises Busy if another process holds the lock, Unlockable if the file system has no locks, and OSError if the file
    cannot be opened.
    """

    def __init__(self, file: Path, *, wait: bool = False, mode: int = 0o666) -> None:
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            owner = os.read(self._descriptor, 20).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise Busy(f"another secateur (process {owner}) holds {file}", process=owner) from None
        except OSError as error:
            os.close(self._descriptor)
            raise Unlockable(f"{file} cannot be locked ({error.strerror}): use a directory on another disk") from None
        with suppress(OSError):  # on a full disk the lock holds without the number
            os.truncate(self._descriptor, 0)
            os.write(self._descriptor, str(os.getpid()).encode())

    def release(self) -> None:
        """Unlock the file, which stays."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def locked(file: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock on `file`, created with its folder if missing, for the `with` block.

    If another process holds it: with `wait`, log what that one is `doing` and wait; else raise Busy, which says it.
    Raises Unlockable if the file system has no locks.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(file)
    except Busy:
        if not wait:
            raise Busy(f"another secateur is {doing}: wait until it has ended, then run this command again") from None
        logger.info("waiting for another secateur, which is %s", doing)
        lock = FileLock(file, wait=True)
    with lock:
        yield
