"""The ledger's two databases behind one small interface: an SQLite file, or PostgreSQL by its URL (extra `postgres`).

Statements are written once, with `?` for values. SQLite has one writing process, which a lock file proves;
PostgreSQL has many, told apart by their instance's name, which an advisory lock proves.
"""

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from server.errors import ConfigError

POSTGRES = re.compile(r"postgres(ql)?://")
# How soon a connection whose other end is gone without a word is given up, unless the URL says otherwise.
NETWORK = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3,
           "tcp_user_timeout": 10_000}  # fmt: skip
# And on the server's side: a replica's name and locks, once its machine is gone or it stands still in a transaction.
SERVER = ("SET tcp_keepalives_idle = 5", "SET tcp_keepalives_interval = 2", "SET tcp_keepalives_count = 3",
          "SET idle_in_transaction_session_timeout = '10s'",
          # A database may be told to say that something is durable before it is; the ledger is not to be.
          "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)  # fmt: skip


class StorageError(Exception):
    """The database said no; its own words on one line."""


class Database(Protocol):
    """One connection; everything raises StorageError where the database cannot."""

    where: str
    """What messages call it, without a password."""
    identity: str
    """The type of a column that numbers its rows."""
    shared: bool
    """Whether other processes write to it too."""

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; returns its rows."""
        ...

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run one statement for each of `rows`; returns how many rows of the table that changed."""
        ...

    def transaction(self) -> Any:
        """A context manager: durable at its end, rolled back where an error leaves it."""
        ...

    def tables(self) -> set[str]:
        """The names of all tables."""
        ...

    def alone(self, instance: str) -> bool:
        """Whether nobody else is writing as `instance`, from now until the end of the connection."""
        ...

    def free(self, instance: str) -> bool:
        """Whether nobody is writing as `instance`, from now until the end of the transaction."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def writer(where: str, busy_seconds: float) -> Database:
    """The connection that writes; raises ConfigError if it cannot be had, or another process has the file."""
    try:
        return (Postgres if POSTGRES.match(where) else SQLite)(where, busy_seconds)
    except StorageError as error:
        raise ConfigError(f"{shown(where)} cannot be used as the ledger: {error}") from None


@contextmanager
def reader(where: str) -> Iterator[Database]:
    """A connection of its own that reads one moment's state; raises StorageError."""
    with beside(where) as database, database.transaction():
        if database.shared:
            database.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield database


@contextmanager
def beside(where: str) -> Iterator[Database]:
    """A connection beside the one that writes; SQLite's may only read."""
    kind = Postgres if POSTGRES.match(where) else SQLite
    database: Database = kind(where, 5.0, read_only=True)
    try:
        yield database
    finally:
        database.close()


def shown(where: str) -> str:
    """A URL without its password; a path as it is."""
    return re.sub(r"//[^@/]*@", "//", where).split("?")[0] if POSTGRES.match(where) else where


class SQLite:
    """A file, made if it does not exist, locked for this process unless `read_only`."""

    identity = "INTEGER PRIMARY KEY"
    shared = False

    def __init__(self, where: str, busy_seconds: float, *, read_only: bool = False) -> None:
        path = Path(where)
        self.where = where
        self._lock = None if read_only else take(path)
        self._begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        name = f"{path.absolute().as_uri()}?mode=ro" if read_only else str(path)
        try:
            with errors(sqlite3.Error):
                # isolation_level None: transactions begin and end where this file says so.
                self.connection = sqlite3.connect(
                    name, busy_seconds, isolation_level=None, check_same_thread=False, uri=read_only
                )
                if not read_only:
                    self.connection.execute("PRAGMA journal_mode = WAL")
                    self.connection.execute("PRAGMA synchronous = FULL")
        except StorageError:
            self._unlock()
            raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with errors(sqlite3.Error):
            return self.connection.execute(statement, values).fetchall()

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run one statement for each of `rows`."""
        with errors(sqlite3.Error):
            return self.connection.executemany(statement, rows).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Takes the file for writing at once, so that nothing fails half-way."""
        self.execute(self._begin)
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            raise

    def tables(self) -> set[str]:
        """From SQLite's own list."""
        return {name for (name,) in self.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def alone(self, instance: str) -> bool:
        """The lock file has proved it."""
        return True

    def free(self, instance: str) -> bool:
        """Likewise."""
        return True

    def close(self) -> None:
        """Close the file, then unlock it."""
        self.connection.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Postgres:
    """A PostgreSQL database, through psycopg; a lost connection is made again with the next transaction."""

    identity = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    shared = True

    def __init__(self, url: str, busy_seconds: float, *, read_only: bool = False) -> None:
        try:
            import psycopg
            import psycopg.conninfo
        except ImportError:
            raise StorageError("PostgreSQL needs `pip install 'secateur[postgres]'`") from None
        self.where = shown(url)
        self._psycopg = psycopg
        self._lock_timeout = f"SET lock_timeout = '{int(busy_seconds * 1000)}ms'"
        self._names: set[str] = set()
        self._connection: Any = None
        with errors(psycopg.Error):
            self._options: dict[str, Any] = {**NETWORK, **psycopg.conninfo.conninfo_to_dict(url)}
        self._connect()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with errors(self._psycopg.Error):
            cursor = self._connection.execute(statement.replace("?", "%s"), tuple(values))
            return list(cursor.fetchall()) if cursor.description else []

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run one statement for each of `rows`, in one round trip."""
        with errors(self._psycopg.Error), self._connection.cursor() as cursor:
            cursor.executemany(statement.replace("?", "%s"), [tuple(row) for row in rows])
            return int(cursor.rowcount)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Rows that two transactions change are locked by the first."""
        if self._connection.closed:
            self._connect()
        with errors(self._psycopg.Error), self._connection.transaction():
            yield

    def tables(self) -> set[str]:
        """Those of the connection's schema."""
        rows = self.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()")
        return {name for (name,) in rows}

    def alone(self, instance: str) -> bool:
        """By an advisory lock, which the server lets go of when the connection ends."""
        if instance in self._names:
            self.execute("SELECT 1")  # StorageError where the connection, and the lock with it, is gone
            return True
        if self.execute("SELECT pg_try_advisory_lock(?)", (number(instance),))[0][0]:
            self._names.add(instance)
        return instance in self._names

    def free(self, instance: str) -> bool:
        """By the same lock, which goes with the transaction."""
        return bool(self.execute("SELECT pg_try_advisory_xact_lock(?)", (number(instance),))[0][0])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _connect(self) -> None:
        with errors(self._psycopg.Error):
            self._connection = self._psycopg.connect(**self._options, autocommit=True)
        names, self._names = self._names, set()
        try:
            with errors(self._psycopg.Error):
                self._connection.execute("; ".join((self._lock_timeout, *SERVER)))  # one round trip, for readers too
            for name in names:
                if not self.alone(name):  # the server may still hold the lock of the connection that was lost
                    raise StorageError(f"another secateur writes to {self.where} as instance {name!r}")
        except StorageError:  # without its names it must write nothing: the next transaction connects again
            self._names = names
            self._connection.close()
            raise


def number(instance: str) -> int:
    """An advisory lock's number, of 64 bits."""
    return int.from_bytes(sha256(f"secateur {instance}".encode()).digest()[:8], signed=True)


@contextmanager
def errors(kind: type[Exception]) -> Iterator[None]:
    """A driver's errors as StorageError."""
    try:
        yield
    except kind as error:
        raise StorageError(" ".join(str(error).split())) from None


def take(path: Path) -> int:
    """Lock `path` for this process; raises ConfigError if another one has it."""
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{lock} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 20).decode(errors="replace").strip()
        os.close(handle)
        raise ConfigError(
            f"{path} is in use by another secateur (process {owner}); each server needs its own file, "
            'or all of them one ledger in PostgreSQL: ledger = "postgresql://..."'
        ) from None
    with suppress(OSError):  # a full disk: the number is for people, the lock holds without it
        os.truncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
    return handle
