"""Connections to the ledger's database: one that writes, and others beside it that read."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Busy, ConfigError, Unlockable
from server.storage.connection import connect
from server.storage.database import Database, Options, StorageError
from server.storage.postgres import is_postgres, without_password

DURABLE = ("journal_mode = WAL", "synchronous = FULL")


def instance_of(where: str, named: str) -> str:
    """A replica's name in the ledger `where`: `named`, else the host's; empty for SQLite, which has a single writer."""
    return (named or socket.gethostname()) if is_postgres(where) else ""


def writer(where: str, busy_seconds: float) -> Database:
    """The connection that writes; raises ConfigError if it cannot be opened or another process has the SQLite file."""
    try:
        return connect(where, Options(busy_seconds, exclusive=True, pragmas=DURABLE))
    except Busy as error:
        raise ConfigError(
            f"{where} is in use by another secateur (process {error.process}); each server needs its own file, "
            'or all of them one ledger in PostgreSQL: ledger = "postgresql://..."'
        ) from None
    except (StorageError, Unlockable) as error:
        raise unusable(where, error) from None


def unusable(where: str, error: Exception) -> ConfigError:
    """The error for a ledger that the database refused when the server started."""
    return ConfigError(f"{without_password(where)} cannot be used as the ledger: {error}")


@contextmanager
def snapshot(where: str) -> Iterator[Database]:
    """A connection that reads the ledger as it was at one moment; raises StorageError."""
    with second_connection(where) as database, database.transaction():
        if database.shared:
            database.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield database


@contextmanager
def second_connection(where: str) -> Iterator[Database]:
    """A connection beside the writer's; to an SQLite file it may only read. Raises StorageError."""
    database = connect(where, Options(read_only=True))
    try:
        yield database
    finally:
        database.close()
