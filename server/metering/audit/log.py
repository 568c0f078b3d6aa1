"""Appends to the audit log from a thread of its own, so that the event loop never waits for the database."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from server.metering.audit import chain
from server.metering.audit.chain import Event
from server.metering.ledger.connection import DURABLE, snapshot, unusable
from server.metering.ledger.records import LedgerUnavailable
from server.storage.connection import connect
from server.storage.database import Database, Options, StorageError

BUSY_SECONDS = 5.0
CLOSE_SECONDS = 10.0
MOST_WAITING = 1000
BATCH = 256  # events per commit: they share one fsync
logger = logging.getLogger(__name__)
Job = tuple[float, Event, "Future[None]"]


class AuditLog:
    """The log in the ledger at `where`, made if missing; `clock` returns seconds since 1970.

    Other processes may append to the same log. Raises ConfigError if the database cannot be used.
    """

    def __init__(self, where: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self.where = str(where)
        self._clock = clock
        self._jobs: queue.Queue[Job | None] = queue.Queue(MOST_WAITING)
        self._database = opened(self.where)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> "Future[None]":
        """Queue an event; the future resolves once it is durable, or raises LedgerUnavailable, which is also logged."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # a caller that leaves must not cancel the write
        try:
            self._jobs.put_nowait((self._clock(), event, done))
        except queue.Full:
            self._fail([(0.0, event, done)], f"{MOST_WAITING} entries are waiting")
        return done

    def objects(self, action: str) -> set[str]:
        """The distinct `object` fields of all entries with this action; raises StorageError."""
        with snapshot(self.where) as database:
            return chain.objects(database, action)

    def close(self) -> None:
        """Write what is waiting and close the database; gives up on a hanging one after CLOSE_SECONDS."""
        try:
            self._jobs.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)
        except queue.Full:
            pass
        if self._thread.is_alive():
            logger.error("The audit log's database does not answer; its last entries are lost.")
        else:
            self._database.close()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            while len(jobs) < BATCH and not self._jobs.empty():
                following = self._jobs.get()
                if following is None:
                    self._write(jobs)
                    return
                jobs.append(following)
            self._write(jobs)

    def _write(self, jobs: list[Job]) -> None:
        try:
            made = self._append(jobs)
        except Exception as error:  # the thread must live
            self._fail(jobs, str(error) if isinstance(error, StorageError) else type(error).__name__)
            return
        for entry in made:  # a log that leaves the machine holds the hashes too, as anchors
            facts = {"entry": entry.number, "who": entry.who, "action": entry.action, "hash": entry.hash}
            logger.info("audit", extra={"facts": facts})
        for _, _, done in jobs:
            done.set_result(None)

    def _append(self, jobs: list[Job]) -> list[chain.Entry]:
        """Append, trying once more on a connection that broke while idle."""
        events = [(moment, event) for moment, event, _ in jobs]
        try:
            return chain.append(self._database, events)
        except StorageError:
            if not self._database.shared:
                raise
            return chain.append(self._database, events)

    def _fail(self, jobs: list[Job], reason: str) -> None:
        logger.error("%d audit entries are lost: %s", len(jobs), reason)
        for _, _, done in jobs:
            done.set_exception(LedgerUnavailable(f"audit log: {reason}"))


def opened(where: str) -> Database:
    """A connection that may append beside the server's own; raises ConfigError."""
    try:
        database = connect(where, Options(BUSY_SECONDS, pragmas=DURABLE))
        try:
            chain.prepare(database)
        except BaseException:
            database.close()
            raise
    except StorageError as error:
        raise unusable(where, error) from None
    return database
