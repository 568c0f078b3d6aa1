"""The interface that SQLite and PostgreSQL share: statements are written once, with `?` for values.

`server.storage.connection` opens one of the two by its path or URL.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from msgspec import Struct


class StorageError(Exception):
    """The database failed; the text is the driver's own message on one line."""


class Options(Struct, frozen=True):
    """How to open a database; PostgreSQL ignores what only SQLite has."""

    busy_seconds: float = 5.0
    """How long a statement waits for a lock that another process holds."""
    failure: Callable[[str], Exception] = StorageError
    """Makes the error to raise from the driver's message, on one line."""
    read_only: bool = False
    """SQLite: opens an existing file and never writes to it."""
    exclusive: bool = False
    """SQLite: keeps other secateurs out with the lock file `NAME.lock`; raises Busy if another one holds it."""
    pragmas: tuple[str, ...] = ()
    """SQLite: `name = value`, set once the file is open."""


class Database(Protocol):
    """One connection; every method raises `Options.failure`, StorageError by default, if the database fails."""

    where: str
    """The path, or the URL without its password and parameters, for messages."""
    identity: str
    """The SQL type of a column that numbers its rows."""
    shared: bool
    """Whether other processes write to it too."""

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        ...

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run one statement for each of `rows` and return the number of table rows that changed."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """Commit at the end of the `with` block, durably; roll back if it raises."""
        ...

    def check(self) -> None:
        """Raise if SQLite's file was deleted, moved or replaced since it was opened; writes nothing."""
        ...

    def check_room(self) -> None:
        """Raise if the disk of SQLite's file is nearly full; PostgreSQL's own disk is not looked at."""
        ...

    def tables(self) -> set[str]:
        """The names of all tables."""
        ...

    def make_append_only(self, table: str) -> None:
        """Make every UPDATE and DELETE of `table` fail, from this program or any other."""
        ...

    def claim(self, name: str) -> bool:
        """Hold `name` until the connection ends; False if another connection holds it."""
        ...

    def claim_for_transaction(self, name: str) -> bool:
        """Hold `name` until the transaction ends; False if another connection holds it."""
        ...

    def close(self) -> None:
        """Close the connection, which releases everything it holds."""
        ...


@contextmanager
def translated(kind: type[Exception], failure: Callable[[str], Exception]) -> Iterator[None]:
    """Raise `failure(message)` for a driver's error, with its message on one line."""
    try:
        yield
    except kind as error:
        raise failure(" ".join(str(error).split())) from None
