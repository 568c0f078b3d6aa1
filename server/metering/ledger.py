"""The durable count of tokens: one SQLite row for each reply, and totals that move in the same transaction.

A row is open before the reply's first token leaves and is settled exactly once; a process that dies leaves open
rows, which the next one turns into `recovered` with what is known of them: the prompt, but not the tokens sent.
"""

import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import Struct

from server.errors import ConfigError, SecateurError

BATCH = 256  # jobs of one commit: under load one fsync serves them all
BUSY_SECONDS = 5.0
RETRY_SECONDS = 1.0
Outcome = Literal["stop", "length", "client_gone", "error", "server_shutdown", "rejected", "recovered"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
  request_id TEXT PRIMARY KEY,
  skill TEXT NOT NULL,
  model TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'final', 'recovered')),
  outcome TEXT,
  opened_at REAL NOT NULL,
  closed_at REAL,
  prompt_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL DEFAULT 0,
  output_tokens INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS open_requests ON requests (state) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS tokens (
  skill TEXT, model TEXT, type TEXT, value INTEGER NOT NULL, PRIMARY KEY (skill, model, type)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcomes (
  skill TEXT, model TEXT, outcome TEXT, value INTEGER NOT NULL, PRIMARY KEY (skill, model, outcome)
) WITHOUT ROWID;
"""
OPEN = """
INSERT INTO requests (request_id, skill, model, state, opened_at, prompt_tokens) VALUES (?, ?, ?, 'open', ?, ?)
"""
SETTLE = """
UPDATE requests SET state = ?, outcome = ?, closed_at = ?, prompt_tokens = ?, cached_tokens = ?, output_tokens = ?
WHERE request_id = ? AND state = 'open' RETURNING skill, model
"""
ADD_TOKENS = """
INSERT INTO tokens VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value
"""
ADD_OUTCOME = """
INSERT INTO outcomes VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET value = value + 1
"""


class LedgerUnavailable(SecateurError):
    """The ledger cannot be written (disk full, locked): nothing may be served that cannot be counted."""

    status = 503


class Usage(Struct, frozen=True):
    """Tokens of one reply, as the engine counted them; `cached` is a part of `prompt`, as in OpenAI's usage."""

    prompt: int = 0
    cached: int = 0
    output: int = 0


class Opening(Struct, frozen=True):
    """A reply about to begin."""

    request_id: str
    skill: str
    model: str
    prompt: int


class Settlement(Struct, frozen=True):
    """A reply that ended."""

    request_id: str
    usage: Usage
    outcome: Outcome


class Probe(Struct, frozen=True):
    """Nothing to record, but a write all the same: it shows whether the ledger is writable."""


class Totals(Struct, frozen=True):
    """Sums over all settled and recovered rows."""

    tokens: Mapping[tuple[str, str, str], int]
    """(skill, model, type) -> tokens; type is `input` (cached ones included), `cached` or `output`."""
    requests: Mapping[tuple[str, str, str], int]
    """(skill, model, outcome) -> requests."""


class _Job(NamedTuple):
    work: Opening | Settlement | Probe
    done: "Future[None]"


class Ledger:
    """Owns the SQLite file `path`: one process, one writing thread; reading is free."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writable = True
        self._lock = _take(path)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unsettled: list[Settlement] = []
        try:
            self._database = _connect(path)
            self.recovered = _recover(self._database)
        except sqlite3.Error as error:
            os.close(self._lock)
            raise ConfigError(f"{path} cannot be used as the ledger: {error}") from None
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def write(self, work: Opening | Settlement | Probe) -> "Future[None]":
        """Done once durable, or failed with LedgerUnavailable; a settlement that failed is tried again until it is."""
        job = _Job(work, Future())
        job.done.set_running_or_notify_cancel()  # a caller that leaves must not cancel what is being written
        self._jobs.put(job)
        return job.done

    def totals(self) -> Totals:
        """The sums as they stand in the file, read by a connection of its own; raises sqlite3.Error."""
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("BEGIN")
            tokens = {(skill, model, kind): n for skill, model, kind, n in database.execute("SELECT * FROM tokens")}
            requests = {(skill, model, kind): n for skill, model, kind, n in database.execute("SELECT * FROM outcomes")}
        return Totals(tokens, requests)

    def close(self) -> None:
        """Write what is queued, then let go of the file."""
        self._jobs.put(None)
        self._thread.join()
        self._database.close()
        os.close(self._lock)

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            self._commit(jobs)
        self._commit([])

    def _next(self) -> list[_Job] | None:
        """Wait for jobs and take all that are there; None after `close`, once the queue is empty."""
        try:
            first = self._jobs.get(timeout=RETRY_SECONDS if self._unsettled else None)
        except queue.Empty:
            return []
        if first is None:
            return None
        jobs = [first]
        while len(jobs) < BATCH and not self._jobs.empty():
            job = self._jobs.get()
            if job is None:
                self._jobs.put(None)
                break
            jobs.append(job)
        return jobs

    def _commit(self, jobs: list[_Job]) -> None:
        """One transaction for all of `jobs` and for what failed before."""
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                for work in (*self._unsettled, *(job.work for job in jobs)):
                    _apply(self._database, work)
        except sqlite3.Error as error:
            self.writable = False
            self._unsettled += [job.work for job in jobs if isinstance(job.work, Settlement)]
            failure = LedgerUnavailable(f"The usage ledger cannot be written ({error}).", code="ledger_unavailable")
            for job in jobs:
                job.done.set_exception(failure)
        else:
            self.writable = True
            self._unsettled.clear()
            for job in jobs:
                job.done.set_result(None)


def _take(path: Path) -> int:
    """Lock `path` for this process; raises ConfigError if another one has it."""
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{lock} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 20).decode(errors="replace").strip()
        os.close(handle)
        raise ConfigError(
            f"{path} is in use by another secateur (process {owner}); each server needs its own"
        ) from None
    os.truncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions begin and end where this file says so.
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.executescript(SCHEMA)
    return database


def _recover(database: sqlite3.Connection) -> int:
    """Close the rows that a dead process left open; returns how many."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        rows = database.execute("SELECT request_id, prompt_tokens FROM requests WHERE state = 'open'").fetchall()
        for request_id, prompt in rows:
            _settle(database, Settlement(request_id, Usage(prompt=prompt), "recovered"))
    return len(rows)


def _apply(database: sqlite3.Connection, work: Opening | Settlement | Probe) -> None:
    match work:
        case Opening():
            database.execute(OPEN, (work.request_id, work.skill, work.model, time.time(), work.prompt))
        case Settlement():
            _settle(database, work)
        case Probe():
            database.execute("PRAGMA user_version = 1")


def _settle(database: sqlite3.Connection, end: Settlement) -> None:
    """Close one row and move the totals with it; a row that is closed already stays as it is."""
    usage, state = end.usage, "recovered" if end.outcome == "recovered" else "final"
    values = (state, end.outcome, time.time(), usage.prompt, usage.cached, usage.output, end.request_id)
    for skill, model in database.execute(SETTLE, values).fetchall():
        for kind, count in (("input", usage.prompt), ("cached", usage.cached), ("output", usage.output)):
            database.execute(ADD_TOKENS, (skill, model, kind, count))
        database.execute(ADD_OUTCOME, (skill, model, end.outcome))
