"""The database of kept texts: in memory, an SQLite file of its own, or the PostgreSQL that replicas share."""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from typing import TypeVar

from anyio import to_thread

from server.chat.kept.schema import prepare
from server.chat.kept.sealing import Seal, Unreadable
from server.errors import ConfigError, SecateurError
from server.storage.connection import connect
from server.storage.database import Database, Options, StorageError
from server.storage.postgres import without_password
from server.storage.sqlite import MEMORY

BUSY_SECONDS = 5.0
PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "temp_store = MEMORY")
"""What is deleted is overwritten, and sorting writes no text to a temporary file."""
SIGNING, VISITORS = "sessions", "visitors"
T = TypeVar("T")


class TextsUnavailable(SecateurError):
    """The database of conversations does not answer."""

    status = 503

    def __init__(self, message: str) -> None:
        super().__init__(message, code="conversations_unavailable")


class Texts:
    """Owns one connection; every method may be called from any thread.

    `seal` encrypts what visitors and models wrote. Raises ConfigError if the database cannot be used or its keys are
    not those of `seal`.
    """

    def __init__(self, where: str = MEMORY, seal: Seal | None = None) -> None:
        self.seal = seal or Seal()
        self.where = without_password(where)
        self.in_memory = where == MEMORY
        self._lock = threading.Lock()
        try:
            self._database = connect(where, Options(BUSY_SECONDS, pragmas=PRAGMAS))
            try:
                prepare(self._database)
                self.signing_key = self._secret(SIGNING)
                self._visitors = self._secret(VISITORS)
            except BaseException:
                self._database.close()
                raise
        except StorageError as error:
            raise ConfigError(f"{self.where} cannot be used for conversations: {error}") from None

    def transact(self, work: Callable[[Database], T]) -> T:
        """The result of `work` in one transaction, which is durable afterwards; raises TextsUnavailable."""
        with self._lock:
            try:
                return self._once(work)
            except StorageError as error:
                if not self._database.shared:
                    raise _unavailable(error) from None
            try:
                return self._once(work)  # the connection broke while idle
            except StorageError as error:
                raise _unavailable(error) from None

    async def run(self, work: Callable[[Database], T]) -> T:
        """`transact` in a worker thread."""
        return await to_thread.run_sync(self.transact, work)

    def visitor(self, person: str) -> str:
        """The name under which a visitor's conversations are found: keyed, so that it tells nothing of the person."""
        return hmac.new(self._visitors, person.encode(), hashlib.sha256).hexdigest() if person else ""

    def scrub(self) -> None:
        """Remove deleted texts from the write-ahead file, or the dead rows of PostgreSQL's tables."""
        with self._lock:
            try:
                if self._database.shared:
                    for table in ("turns", "conversations", "kept_replies", "ratings"):
                        self._database.execute(f"VACUUM {table}")
                else:
                    self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except StorageError as error:
                raise _unavailable(error) from None

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._database.close()

    def _once(self, work: Callable[[Database], T]) -> T:
        with self._database.transaction():
            return work(self._database)

    def _secret(self, name: str) -> bytes:
        """The random key of this name, made once for all replicas; raises ConfigError if it cannot be decrypted."""
        made = self.seal.close(secrets.token_bytes(32), name)
        with self._database.transaction():
            self._database.execute("INSERT INTO text_secrets VALUES (?, ?) ON CONFLICT DO NOTHING", (name, made))
            [(value,)] = self._database.execute("SELECT value FROM text_secrets WHERE name = ?", (name,))
        try:
            return self.seal.open(bytes(value), name)
        except Unreadable as error:
            raise ConfigError(
                f"{self.where} keeps conversations that cannot be read: {error}. Name the file that has the key - at "
                "`$.conversation_key`"
            ) from None


def _unavailable(error: StorageError) -> TextsUnavailable:
    return TextsUnavailable(f"The conversations cannot be reached: {error}; try again later.")
