"""One small interface to the registry's database: an SQLite file, or PostgreSQL by its URL (extra `postgres`).

Statements are written once, with `?` for values; only the triggers that make a table append-only differ.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from server.errors import RegistryError

BUSY_SECONDS = 3.0
POSTGRES = re.compile(r"postgres(ql)?://")
NOTHING = "nothing was changed"
MAKE = "`secateur registry add` makes one"


class Database(Protocol):
    """Rows in, rows out; what is executed within `transaction` happens whole or not at all."""

    where: str
    """What messages call it, without a password."""

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; returns its rows. Raises RegistryError where the database cannot."""
        ...

    def transaction(self) -> Any:
        """A context manager: committed at its end, rolled back where an error leaves it."""
        ...

    def tables(self) -> set[str]:
        """The names of all tables."""
        ...

    def protect(self, table: str) -> None:
        """Refuse every UPDATE and DELETE of `table` from now on, whoever sends it."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def connect(url: str, *, create: bool) -> Database:
    """The database at `url`, an SQLite path or `postgresql://...`; raises RegistryError if it cannot be had.

    Only with `create` is a file made, so that a mistyped path is not taken for an empty registry.
    """
    if POSTGRES.match(url):
        return Postgres(url)
    if not create and not Path(url).exists():
        raise RegistryError(f"there is no registry at {url}: {MAKE}")
    return SQLite(Path(url))


class SQLite:
    """A file, made if it does not exist."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        with self._errors():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RegistryError(f"{path} cannot be made: {error.strerror}; {NOTHING}") from None
            self._database = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA foreign_keys = ON")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with self._errors():
            return self._database.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Takes the file for writing at once, so that two never wait for each other half-way."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    def tables(self) -> set[str]:
        """From SQLite's own list."""
        return {name for (name,) in self.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def protect(self, table: str) -> None:
        """A trigger for each kind of change."""
        for change in ("UPDATE", "DELETE"):
            self.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RegistryError(f"the registry {self.where}: {_sentence(str(error))}; {NOTHING}") from None


class Postgres:
    """A PostgreSQL database, through psycopg."""

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise RegistryError("a registry in PostgreSQL needs `pip install 'secateur[postgres]'`") from None
        self._error = psycopg.Error
        self.where = re.sub(r"//[^@/]*@", "//", url).split("?")[0]
        with self._errors():
            self._connection: Any = psycopg.connect(url, autocommit=True, connect_timeout=10)
            self._connection.execute(f"SET lock_timeout = '{int(BUSY_SECONDS * 1000)}ms'")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with self._errors():
            cursor = self._connection.execute(statement.replace("?", "%s"), tuple(values))
            return list(cursor.fetchall()) if cursor.description else []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Rows that two transactions change are locked by the first."""
        with self._errors(), self._connection.transaction():
            yield

    def tables(self) -> set[str]:
        """Those of the connection's schema."""
        rows = self.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()")
        return {name for (name,) in rows}

    def protect(self, table: str) -> None:
        """One trigger for both kinds of change."""
        name = f"{table}_append_only"
        self.execute(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
        )
        self.execute(f"CREATE TRIGGER {name} BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise RegistryError(f"the registry {self.where}: {_sentence(str(error))}; {NOTHING}") from None


def _sentence(message: str) -> str:
    """The database's own words on one line, with what to do where that is known."""
    first = " ".join(message.split())
    if "locked" in first or "lock timeout" in first:
        return f"another process holds it ({first}); try again"
    if "readonly" in first or "read-only" in first or "permission denied" in first:
        return f"it may only be read here ({first})"
    return first
