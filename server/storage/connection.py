"""Opens a database by its path or URL."""

from collections.abc import Iterable
from pathlib import Path

from server.errors import ConfigError
from server.storage.database import Database, Options, StorageError
from server.storage.postgres import Postgres, is_postgres, misnamed
from server.storage.sqlite import SQLite


def opened(path: Path, purpose: str, tables: Iterable[str], options: Options) -> Database:
    """The SQLite file `path` with `tables` made where they are missing; raises ConfigError that names its `purpose`."""
    try:
        database = connect(str(path), options)
        try:
            for table in tables:
                database.execute(table)
        except StorageError:
            database.close()
            raise
    except StorageError as error:
        raise ConfigError(f"{path} cannot be used for {purpose}: {error}") from None
    return database


def connect(where: str, options: Options) -> Database:
    """The SQLite file or the PostgreSQL database at `where`; raises `options.failure` if it cannot be opened."""
    if problem := misnamed(where):
        raise options.failure(problem)
    return (Postgres if is_postgres(where) else SQLite)(where, options)
