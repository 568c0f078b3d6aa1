"""PostgreSQL behind the `Database` interface, through psycopg (extra `postgres`): many processes write to it.

They are told apart by names, which advisory locks hold: PostgreSQL releases them when the connection ends.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from typing import Any

from server.storage.database import Options, translated

URL = re.compile(r"postgres(ql)?://")
OTHER = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+:|[a-z]+\s*=|.*?://)")
"""The start of what looks like another URL, a misspelt one, or a connection string of keywords."""
NETWORK = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3,
           "tcp_user_timeout": 10_000}  # fmt: skip
"""When to give up a connection whose other end vanished without a word; parameters of the URL override these."""
SESSION = (
    # The same on the server's side, so that a vanished or hanging replica loses its names and row locks.
    "SET tcp_keepalives_idle = 5", "SET tcp_keepalives_interval = 2", "SET tcp_keepalives_count = 3",
    "SET idle_in_transaction_session_timeout = '10s'",
    # A database may be configured to report a commit before it is durable.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)  # fmt: skip


def is_postgres(where: str) -> bool:
    """Whether `where` is the URL of a PostgreSQL database, and not a path."""
    return URL.match(where) is not None


def misnamed(where: str) -> str | None:
    """The error message for a `where` that is neither a path nor a PostgreSQL URL, without its secrets; else None.

    A misspelt URL would otherwise become an SQLite file, with the password in its name.
    """
    if is_postgres(where) or not OTHER.match(where):
        return None
    return (
        f"{without_password(where)!r} is neither a file nor PostgreSQL: write usage.sqlite3 or the like (./NAME for a "
        "name with a colon), or postgresql://USER@HOST/DATABASE"
    )


def without_password(where: str) -> str:
    """A PostgreSQL URL without credentials and parameters, for messages; a path unchanged."""
    if is_postgres(where):
        return re.sub(r"//.*@", "//", where).split("?")[0]
    found = OTHER.match(where)
    return f"{found[1]}..." if found else where


class Postgres:
    """The database at `url`; after a lost connection the next transaction reconnects and claims the same names again.

    Raises `options.failure` if psycopg is not installed, the server cannot be reached, or another process has taken
    such a name meanwhile.
    """

    identity = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    shared = True

    def __init__(self, url: str, options: Options) -> None:
        try:
            import psycopg
            import psycopg.conninfo
        except ImportError:
            raise options.failure("PostgreSQL needs `pip install 'secateur[postgres]'`") from None
        self.where = without_password(url)
        self._psycopg = psycopg
        self._failure = options.failure
        self._lock_timeout = f"SET lock_timeout = '{int(options.busy_seconds * 1000)}ms'"
        self._names: set[str] = set()
        self._connection: Any = None
        self._settings: dict[str, Any] = {**NETWORK, **self._parsed(url)}
        self._connect()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        with self._translated():
            cursor = self._connection.execute(statement.replace("?", "%s"), tuple(values))
            return list(cursor.fetchall()) if cursor.description else []

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run one statement for each of `rows`, in one round trip."""
        with self._translated(), self._connection.cursor() as cursor:
            cursor.executemany(statement.replace("?", "%s"), [tuple(row) for row in rows])
            return int(cursor.rowcount)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Lock each row that the transaction changes until its end."""
        if self._connection.closed:
            self._connect()
        with self._translated(), self._connection.transaction():
            yield

    def check_room(self) -> None:
        """Nothing: the server's disk cannot be seen from here."""

    def check(self) -> None:
        """Do nothing: a lost connection shows with the next statement."""

    def tables(self) -> set[str]:
        """The names of all tables in the connection's schema."""
        rows = self.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()")
        return {name for (name,) in rows}

    def make_append_only(self, table: str) -> None:
        """Create one trigger for both UPDATE and DELETE."""
        name = f"{table}_append_only"
        self.execute(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
        )
        self.execute(f"CREATE TRIGGER {name} BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")

    def claim(self, name: str) -> bool:
        """Take an advisory lock of the session."""
        if name in self._names:
            self.execute("SELECT 1")  # fails if the connection, and the lock with it, is gone
            return True
        if self.execute("SELECT pg_try_advisory_lock(?)", (advisory_key(name),))[0][0]:
            self._names.add(name)
        return name in self._names

    def claim_for_transaction(self, name: str) -> bool:
        """Take the same advisory lock for the transaction alone."""
        return bool(self.execute("SELECT pg_try_advisory_xact_lock(?)", (advisory_key(name),))[0][0])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _parsed(self, url: str) -> dict[str, Any]:
        """The parameters of `url`; the failure quotes nothing, since a stray @ moves a password into the host."""
        with suppress(self._psycopg.Error):
            if url.partition("?")[0].count("@") < 2:
                return dict(self._psycopg.conninfo.conninfo_to_dict(url))
        raise self._failure(
            "its URL is malformed: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE?PARAMETER=VALUE, with %40 for "
            "an @ in a name or password, and only libpq's parameters"
        )

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self._psycopg.Error, self._failure)

    def _connect(self) -> None:
        with self._translated():
            self._connection = self._psycopg.connect(**self._settings, autocommit=True)
        names, self._names = self._names, set()
        try:
            with self._translated():
                self._connection.execute("; ".join((self._lock_timeout, *SESSION)))  # one round trip
            for name in names:
                if not self.claim(name):  # the server may not have noticed yet that the old connection is gone
                    raise self._failure(f"another secateur writes to {self.where} as instance {name!r}")
        except BaseException:  # without its names it must write nothing: the next transaction connects again
            self._names = names
            self._connection.close()
            raise


def advisory_key(name: str) -> int:
    """The 64-bit number of the advisory lock that holds `name`."""
    return int.from_bytes(sha256(f"secateur {name}".encode()).digest()[:8], signed=True)
