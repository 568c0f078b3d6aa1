"""The journal of a build: each document as it was read, and each vector, so that nothing is read or encoded twice.

Every document and batch of vectors is committed on its own: a build that was killed goes on from there.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy
from msgspec import Struct

from server.errors import Busy, KnowledgeError
from server.knowledge.index.vectors import Vector
from server.knowledge.passages import Passage
from server.storage.connection import connect
from server.storage.database import Database, Options

VERSION = 3
"""Changes when readers or passages do, so that every document is read anew."""
TABLES = (
    "CREATE TABLE IF NOT EXISTS journal (version INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, stamp TEXT NOT NULL, options TEXT NOT NULL,"
    " digest TEXT NOT NULL, parts BLOB NOT NULL, failure TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS vectors (encoder TEXT NOT NULL, text TEXT NOT NULL, vector BLOB NOT NULL,"
    " PRIMARY KEY (encoder, text)) WITHOUT ROWID",
)


class Part(Struct, frozen=True, array_like=True):
    """A document of a file: one, or one for each line of JSON lines."""

    key: str
    title: str
    url: str
    passages: tuple[Passage, ...]


class Known(Struct, frozen=True):
    """A document as it was read last."""

    stamp: str
    """What shows that it has not changed: a file's size, times and inode, or a page's ETag and Last-Modified."""
    options: str
    """Digest of the settings that it was read with."""
    digest: str
    """SHA-256 of its content; empty if it was never read."""
    parts: tuple[Part, ...]
    failure: str = ""
    """Why its latest content could not be read; `parts` are then those of an earlier one."""


class Journal:
    """An open journal, a context manager; raises KnowledgeError if the file fails, Busy if another build has it."""

    def __init__(self, path: Path) -> None:
        def failure(message: str) -> KnowledgeError:
            return KnowledgeError(f"the journal {path}: {message}; remove it to read all documents anew")

        pragmas = ("journal_mode = WAL", "synchronous = NORMAL")
        try:
            options = Options(failure=failure, exclusive=True, pragmas=pragmas)
            self._database: Database = connect(str(path), options)
        except Busy as error:
            raise Busy(f"another build (process {error.process}) uses {path}: wait until it has ended") from None
        with self._database.transaction():
            for table in TABLES:
                self._database.execute(table)
            if self._database.execute("SELECT version FROM journal") != [(VERSION,)]:
                self._database.execute("DELETE FROM journal")
                self._database.execute("DELETE FROM documents")
                self._database.execute("INSERT INTO journal VALUES (?)", (VERSION,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()

    def known(self, name: str) -> Known | None:
        """The document `name` as it was read last."""
        columns = "stamp, options, digest, parts, failure"
        rows = self._database.execute(f"SELECT {columns} FROM documents WHERE name = ?", (name,))
        if not rows:
            return None
        [(stamp, options, digest, parts, failure)] = rows
        return Known(stamp, options, digest, msgspec.msgpack.decode(parts, type=tuple[Part, ...]), failure)

    def remember(self, name: str, known: Known) -> None:
        """Write or replace a document."""
        parts = msgspec.msgpack.encode(known.parts)
        row = (name, known.stamp, known.options, known.digest, parts, known.failure)
        self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?)", row)

    def forget_others(self, names: Iterable[str]) -> list[str]:
        """Remove every document that is not among `names`; returns the removed names, sorted."""
        kept = set(names)
        gone = [name for (name,) in self._database.execute("SELECT name FROM documents") if name not in kept]
        with self._database.transaction():
            for name in gone:
                self._database.execute("DELETE FROM documents WHERE name = ?", (name,))
        return sorted(gone)

    def vectors(self, encoder: str, texts: Sequence[str]) -> dict[str, Vector]:
        """The known vectors of texts, by the texts' SHA-256."""
        found: dict[str, Vector] = {}
        for text in texts:
            rows = self._database.execute("SELECT vector FROM vectors WHERE encoder = ? AND text = ?", (encoder, text))
            if rows:
                found[text] = numpy.frombuffer(rows[0][0], dtype="<f4")
        return found

    def remember_vectors(self, encoder: str, vectors: dict[str, Vector]) -> None:
        """Write vectors by their texts' SHA-256, together."""
        with self._database.transaction():
            for text, vector in vectors.items():
                row = (encoder, text, vector.astype("<f4").tobytes())
                self._database.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", row)

    def forget_other_vectors(self, encoder: str, texts: Iterable[str]) -> None:
        """Remove the vectors of other encoders and of texts that no passage has any more."""
        kept = set(texts)
        known = self._database.execute("SELECT encoder, text FROM vectors")
        with self._database.transaction():
            for other, text in known:
                if other != encoder or text not in kept:
                    self._database.execute("DELETE FROM vectors WHERE encoder = ? AND text = ?", (other, text))
