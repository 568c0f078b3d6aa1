"""SQLite behind the `Database` interface: one file, with one writing process if it is opened `exclusive`."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from server.storage.database import Options, translated
from server.storage.lock import FileLock


class SQLite:
    """The file `where`; unless `read_only`, it and its folder are created if missing."""

    identity = "INTEGER PRIMARY KEY"
    shared = False

    def __init__(self, where: str, options: Options) -> None:
        self.where = where
        self._failure = options.failure
        self._begin = "BEGIN" if options.read_only else "BEGIN IMMEDIATE"
        self._lock: FileLock | None = None
        path = Path(where)
        if not options.read_only:
            self._make_folder(path.parent)
        if options.exclusive:
            self._lock = self._locked(path)
        name = f"{path.absolute().as_uri()}?mode=ro" if options.read_only else where
        try:
            with translated(sqlite3.Error, self._failure):
                # isolation_level None: transactions begin and end only where this class says so.
                self._connection = sqlite3.connect(
                    name, options.busy_seconds, isolation_level=None, check_same_thread=False, uri=options.read_only
                )
                for pragma in options.pragmas:
                    self._connection.execute(f"PRAGMA {pragma}")
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
            yield
            self.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

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
        """True, likewise."""
        return True

    def close(self) -> None:
        """Close the file, then unlock it."""
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
