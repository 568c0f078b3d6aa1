"""SHA-256 of files, remembered for as long as the files provably have not changed."""

import hashlib
import os
import time
from pathlib import Path
from typing import IO, NamedTuple

TICK = 0.02
"""Seconds within which two changes of a file may leave it the same times; the kernel's clock ticks every 1 to 10 ms."""


class Stamp(NamedTuple):
    """Identifies one content of one file: every write changes `changed` (ctime), which no program can set back."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


class FileDigests:
    """Computes the SHA-256 of each file once, and again only after the file was changed or replaced.

    Files are known by their stamp and not by their path, so those of a renamed folder are not read again.
    """

    def __init__(self) -> None:
        self._known: dict[Stamp, str] = {}

    def of(self, path: Path) -> str:
        """SHA-256 of the file `path`, in hexadecimal; raises OSError."""
        with path.open("rb") as file:
            stamp = _stamp(file)
            if stamp in self._known:
                return self._known[stamp]
            settled = _settle(stamp)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if settled and _stamp(file) == stamp:
                self._known[stamp] = digest
            return digest


def _stamp(file: IO[bytes]) -> Stamp:
    status = os.fstat(file.fileno())
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _settle(stamp: Stamp) -> bool:
    """Wait until a later change must get another ctime; False if the ctime lies in the future, so it proves nothing."""
    age = time.time() - stamp.changed / 1e9
    if 0 <= age < TICK:
        time.sleep(TICK - age)
    return age >= 0
