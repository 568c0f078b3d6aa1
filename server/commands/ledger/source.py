"""The ledger that a command names: a file, a URL, or the settings of the server that writes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server import config
from server.errors import ConfigError
from server.storage.database import StorageError
from server.storage.postgres import is_postgres, misnamed, without_password

LEDGER_HELP = "an SQLite file, postgresql://..., or a server's TOML file"


@contextmanager
def opened(text: str) -> Iterator[str]:
    """Context manager: the path or URL of the ledger that `text` is, or that the TOML file `text` configures.

    Raises ConfigError if there is no such ledger, or for any StorageError within.
    """
    ledger = config.load(Path(text)).ledger if text.endswith(".toml") else text
    if not (is_postgres(ledger) or misnamed(ledger)) and not Path(ledger).exists():
        raise ConfigError(f"there is no ledger at {ledger}: a server makes it when it starts")
    try:
        yield ledger
    except StorageError as error:
        raise ConfigError(f"{without_password(ledger)} cannot be read as a ledger: {error}") from None
