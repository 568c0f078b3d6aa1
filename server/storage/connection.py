"""Opens a database by its path or URL."""

from server.storage.database import Database, Options
from server.storage.postgres import Postgres, is_postgres, misnamed
from server.storage.sqlite import SQLite


def connect(where: str, options: Options) -> Database:
    """The SQLite file or the PostgreSQL database at `where`; raises `options.failure` if it cannot be opened."""
    if problem := misnamed(where):
        raise options.failure(problem)
    return (Postgres if is_postgres(where) else SQLite)(where, options)
