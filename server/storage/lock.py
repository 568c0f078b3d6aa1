"""A lock that the system releases however its holder ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import Busy, Unlockable


@contextmanager
def locked(file: Path, doing: str) -> Iterator[None]:
    """Hold `file`, which is made where it is missing; raises Busy where another process is `doing` this now.

    Raises Unlockable where the file system has no locks.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another secateur is {doing}: wait until it has ended, then run this command again") from None
        except OSError as error:
            raise Unlockable(f"{file} cannot be locked ({error.strerror}): use a directory on another disk") from None
        yield
