"""Connections to the registry's database, whose failures are RegistryErrors that say what to do."""

from pathlib import Path

from server.errors import RegistryError
from server.storage.connection import connect
from server.storage.database import Database, Options
from server.storage.postgres import is_postgres, misnamed, without_password

BUSY_SECONDS = 3.0
MAKE = "`secateur registry add` makes one"


def open_database(where: str, *, create: bool) -> Database:
    """The database at `where`, an SQLite path or `postgresql://...`; raises RegistryError if it cannot be opened.

    Without `create`, a missing file is an error, so that a mistyped path is not taken for an empty registry.
    """
    if not create and not (is_postgres(where) or misnamed(where)) and not Path(where).exists():
        raise RegistryError(f"there is no registry at {where}: {MAKE}")

    def failure(message: str) -> RegistryError:
        return RegistryError(f"the registry {without_password(where)}: {_explained(message)}; nothing was changed")

    return connect(where, Options(BUSY_SECONDS, failure, pragmas=("foreign_keys = ON",)))


def _explained(message: str) -> str:
    """The driver's message, with what to do where that is known."""
    if "locked" in message or "lock timeout" in message:
        return f"another process holds it ({message}); try again"
    if "readonly" in message or "read-only" in message or "permission denied" in message:
        return f"it may only be read here ({message})"
    return message
