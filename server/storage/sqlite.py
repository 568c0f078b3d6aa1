"""SQLite behind the `Database` interface: one file, with one writing process if it is opened `exclusive`."""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from server.storage.database import Options, translated
from server.storage.lock import FileLock

PARTS = ("", "-wal", "-shm")
"""Suffixes of the files of a database in WAL mode."""
MEMORY = ":memory:"
"""The path of a database that lives in memory alone and ends with its connection."""
LEAST_ROOM = 1 << 18
"""Bytes that a disk must have left for `check_room`: a commit of many replies takes less."""


class SQLite:
    """The file `where`, or MEMORY; unless `read_only`, file and folder are created if missing, for their owner only.

    Transactions raise `options.failure` while the file is not where it was opened: deleted, moved or replaced.
    """

    identity = "INTEGER PRIMARY KEY"
    shared = False

    def __init__(self, where: str, options: Options) -> None:
        self.where = where
        self._failure = options.failure
        self._begin = "BEGIN" if options.read_only else "BEGIN IMMEDIATE"
        self._lock: FileLock | None = None
        path = Path(where)
        on_disk = where != MEMORY
        if on_disk and not options.read_only:
            self._make_folder(path.parent)
        if on_disk and options.exclusive:
            self._lock = self._locked(path)
        if on_disk and not options.read_only:
            _create(path)
        name = f"{path.absolute().as_uri()}?mode=ro" if options.read_only else where
        try:
            with translated(sqlite3.Error, self._failure):
                # isolation_level None: transactions begin and end only where this class says so.
                self._connection = sqlite3.connect(
                    name, options.busy_seconds, isolation_level=None, check_same_thread=False, uri=options.read_only
                )
                for pragma in options.pragmas:
                    self._connection.execute(f"PRAGMA {pragma}")
            self._parts = PARTS if on_disk else ()
            self._files = {where + part: _inode(where + part) for part in self._parts[:1]}
        except BaseException:
            self._unlock()
            raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        with translated(sqlite3.Error, self._failure):
            return self._connection.execute(statement, values).fetchall()

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run one statement for each of `rows`."""
        with translated(sqlite3.Error, self._failure):
            return self._connection.executemany(statement, rows).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Take the write lock at once, so that no statement within fails for lack of it."""
        self.execute(self._begin)
        try:
            self.check()
            yield
            self.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        if len(self._files) < len(self._parts):  # SQLite creates -wal and -shm when it first needs them
            self._files |= {name: inode for part in self._parts if (inode := _inode(name := self.where + part))}

    def check(self) -> None:
        """Compare device and inode of the files with the opened ones; SQLite itself writes on regardless."""
        for name, opened in self._files.items():
            if (found := _inode(name)) != opened:
                raise self._failure(
                    f"{name} was {'replaced by another file' if found else 'deleted or moved'} while it was open; "
                    "put the same file back, or restart to open the one that is there"
                )

    def check_room(self) -> None:
        """Compare the free bytes of the file's disk with LEAST_ROOM: one page may fit where a row does not."""
        disk = os.statvfs(Path(self.where).absolute().parent)
        if (free := disk.f_bavail * disk.f_frsize) < LEAST_ROOM:
            raise self._failure(f"the disk of {self.where} has {free} bytes left, and {LEAST_ROOM} are needed")

    def tables(self) -> set[str]:
        """The names of all tables."""
        return {name for (name,) in self.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def make_append_only(self, table: str) -> None:
        """Create one trigger for UPDATE and one for DELETE."""
        for change in ("UPDATE", "DELETE"):
            self.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )

    def claim(self, name: str) -> bool:
        """True: the lock file keeps every other writer out."""
        return True

    def claim_for_transaction(self, name: str) -> bool:
        """True: the lock file keeps every other writer out."""
        return True

    def close(self) -> None:
        """Close the file, then unlock it."""
        log = f"{self.where}-wal"
        if _inode(log) in (None, self._files.get(log)):  # SQLite deletes it by name, also another database's
            self._connection.close()
        self._unlock()

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failure(f"the folder {folder} cannot be made: {error.strerror}") from None

    def _locked(self, path: Path) -> FileLock:
        file = path.with_name(path.name + ".lock")
        try:
            return FileLock(file, mode=0o600)
        except OSError as error:
            raise self._failure(f"{file} cannot be written: {error.strerror}") from None

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _create(path: Path) -> None:
    """Create a missing file, readable by its owner only; SQLite gives -wal, -shm and journals the same mode."""
    with suppress(OSError):  # it exists, or SQLite reports why it cannot be created
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _inode(name: str) -> tuple[int, int] | None:
    """Device and inode of a file, None if it is missing.

    By its path: closing any descriptor of an open database would release the process's locks on it.
    """
    try:
        status = os.stat(name)
    except OSError:
        return None
    return status.st_dev, status.st_ino
