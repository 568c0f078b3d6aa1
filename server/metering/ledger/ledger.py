"""The durable ledger of tokens: one row per reply, and totals updated in the same transaction.

Write-ahead: a row is opened before its reply starts, counts each token before it is sent, and is settled exactly once.
One thread writes, with one commit for all waiting jobs (group commit).
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from server.errors import ConfigError
from server.metering.ledger import transactions
from server.metering.ledger.connection import snapshot, unusable, writer
from server.metering.ledger.jobs import Counts, Cursor, Probe, Work, apply
from server.metering.ledger.records import (
    Admission,
    Holder,
    LedgerUnavailable,
    Opening,
    Period,
    Settlement,
    Spent,
    Totals,
    Usage,
)
from server.metering.ledger.schema import prepare
from server.storage.database import Database, StorageError
from server.storage.postgres import without_password

BATCH = 256  # jobs per commit: under load they share one fsync
BUSY_SECONDS = 2.0
RETRY_SECONDS = 0.5
SLOW_SECONDS = 10.0  # a transaction that takes longer counts as failed
CLOSE_SECONDS = 30.0  # how long `close` waits for the last transaction
HEARTBEAT_SECONDS = 5.0  # between writes to an idle PostgreSQL, to notice its loss before a request does
WATCH_SECONDS = 1.0  # between checks that an idle SQLite file is still there
REPORT_SECONDS = 60.0  # between log lines while the ledger cannot be written
SWEEP_SECONDS = 60.0  # between sweeps for dead replicas; a live one reconnects and claims its name sooner


logger = logging.getLogger(__name__)


class _Job(Struct, frozen=True, eq=False):
    work: Work
    done: "Future[Any]"


class Ledger:
    """Writes an SQLite file, or the rows of `instance` in a PostgreSQL database; others may read at any time.

    `clock` returns seconds since 1970; only its UTC day matters, for budgets. Raises ConfigError if the database cannot
    be opened or another process writes to it as the same instance.
    """

    def __init__(
        self,
        where: str | Path,
        *,
        instance: str = "",
        clock: Callable[[], float] = time.time,
        busy_seconds: float = BUSY_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        sweep_seconds: float = SWEEP_SECONDS,
    ) -> None:
        self.where = str(where)
        self.instance = instance
        self.closed = False
        self.commits = 0
        self.commit_seconds = 0.0
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._sweep_seconds = sweep_seconds
        self._next_sweep = time.monotonic() + sweep_seconds
        self._silent: frozenset[str] = frozenset()
        self._failed = False
        self._next_report = 0.0
        self._began: float | None = None
        self._silence_told = False
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unsettled: list[Settlement] = []
        self._database = writer(self.where, busy_seconds)
        try:
            self.recovered = self._begin(time.monotonic() + busy_seconds)
        except BaseException as error:
            self._database.close()
            if isinstance(error, StorageError):
                raise unusable(self.where, error) from None
            raise
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    @property
    def writable(self) -> bool:
        """Whether the last transaction succeeded and the current one is not too slow."""
        began = self._began
        return not self._failed and (began is None or time.monotonic() - began < SLOW_SECONDS)

    def report_silence(self) -> None:
        """Log, at most every REPORT_SECONDS, that the database does not answer; the thread that waits for it cannot."""
        began, now = self._began, time.monotonic()
        if began is not None and now - began >= SLOW_SECONDS and now >= self._next_report:
            logger.error("The ledger has not answered for %.0f s: requests are answered 503.", now - began)
            self._next_report = now + REPORT_SECONDS
            self._silence_told = True

    def open(self, opening: Opening) -> "Future[Admission]":
        """Open a row; the future gives the admission once durable. After LedgerUnavailable no row stays open."""
        return self._put(opening)

    def count(self, usage: Mapping[str, Usage]) -> "Future[frozenset[str]]":
        """Write token counts by request id; the future gives the ids whose row is not open, or LedgerUnavailable."""
        return self._put(Counts(usage))

    def settle(self, end: Settlement) -> "Future[None]":
        """Close a row; the future resolves once durable. After LedgerUnavailable the ledger goes on retrying."""
        return self._put(end)

    def remember(self, name: str, value: int) -> "Future[None]":
        """Set the cursor `name` to `value`; the future resolves once durable, or raises LedgerUnavailable."""
        return self._put(Cursor(name, value))

    def probe(self) -> "Future[None]":
        """Test whether the ledger is writable by an empty write; the future raises LedgerUnavailable if it is not."""
        return self._put(Probe())

    @contextmanager
    def snapshot(self) -> Iterator[Database]:
        """The ledger as it is now, on a connection of its own; raises StorageError, also for a replaced file."""
        self._database.check()
        with snapshot(self.where) as database:
            yield database

    def totals(self) -> Totals:
        """This instance's totals, read on a connection of its own; raises StorageError."""
        with self.snapshot() as database:
            return transactions.totals(database, self.instance)

    def figures(self) -> tuple[Totals, list[Spent], list[Spent]]:
        """`totals`, and `spent` of skills and of keys, in one snapshot; raises StorageError."""
        today = transactions.day_of(self._clock())
        with self.snapshot() as database:
            return (
                transactions.totals(database, self.instance),
                transactions.spent(database, "skill", today),
                transactions.spent(database, "key", today),
            )

    def spent(self, holder: Holder = "skill") -> list[Spent]:
        """Tokens used and reserved by each skill, or API key, in the current day and month, over all instances.

        Raises StorageError.
        """
        with self.snapshot() as database:
            return transactions.spent(database, holder, transactions.day_of(self._clock()))

    def until_next(self, period: Period) -> int:
        """Whole seconds until the next day or month begins, in UTC."""
        return transactions.until_next(period, self._clock())

    def close(self) -> None:
        """Write the queued jobs and close the database; gives up on a hanging one after CLOSE_SECONDS."""
        self._jobs.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.error("The ledger does not answer; the next start recovers the rows left open.")
        else:
            self._database.close()
        self.closed = True

    def _begin(self, deadline: float) -> int:
        """Create the tables and close the rows that a dead process of this instance left open; returns their number."""
        prepare(self._database)
        while not self._database.claim(self.instance):
            if time.monotonic() > deadline:  # a sweep of another replica holds it for a moment
                raise ConfigError(
                    f"another secateur writes to {without_password(self.where)} as instance {self.instance!r}: "
                    "give each replica an `instance` of its own"
                )
            time.sleep(RETRY_SECONDS / 10)
        with self._database.transaction():  # other instances' rows wait for two sweeps: their owner may be reconnecting
            return transactions.recover(self._database, [self.instance], self._clock())

    def _put(self, work: Work) -> "Future[Any]":
        job = _Job(work, Future())
        job.done.set_running_or_notify_cancel()  # a caller that leaves must not cancel the write
        self._jobs.put(job)
        return job.done

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            if jobs or self._failed or self._database.shared:
                self._commit(jobs)
            else:
                self._watch()
            if self._database.shared and not self._failed and time.monotonic() > self._next_sweep:
                self._sweep()
        self._commit([])

    def _watch(self) -> bool:
        """Check that the ledger's file is in place and its disk has room, which shows before a request fails."""
        try:
            self._database.check()
            self._database.check_room()
        except StorageError as error:
            self._fail([], LedgerUnavailable(str(error)))
            return False
        return True

    def _sweep(self) -> None:
        """Close the open rows of replicas whose names were unclaimed at this sweep and the one before."""
        self._next_sweep = time.monotonic() + self._sweep_seconds
        with suppress(StorageError), self._database.transaction():  # the next sweep tries again
            names = {*transactions.instances_with_open_rows(self._database)} - {self.instance}
            free = frozenset(name for name in names if self._database.claim_for_transaction(name))
            transactions.recover(self._database, free & self._silent, self._clock())
            self._silent = free

    def _next(self) -> list[_Job] | None:
        """Wait for jobs and take up to BATCH; empty for a retry, heartbeat or check, None after `close`."""
        waiting = min(HEARTBEAT_SECONDS, self._sweep_seconds) if self._database.shared else WATCH_SECONDS
        try:
            first = self._jobs.get(timeout=self._retry_seconds if self._failed else waiting)
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
        """Write `jobs`, and the settlements that failed before, in one transaction."""
        works = [*self._unsettled, *(job.work for job in jobs)]
        started = self._began = time.monotonic()
        try:
            with self._database.transaction():
                results = apply(self._database, self.instance, works, self._clock())
        except StorageError as error:
            self._fail(jobs, LedgerUnavailable(str(error)))
            return
        except Exception as error:  # the thread must live: without it nothing is counted or answered
            logger.exception("A transaction of the ledger failed.")
            self._fail(jobs, LedgerUnavailable(f"The ledger cannot be written: {type(error).__name__}."))
            return
        finally:
            self._began = None
        self.commits, self.commit_seconds = self.commits + 1, self.commit_seconds + time.monotonic() - started
        if jobs or not self._failed or self._watch():  # on a full disk a settlement may fit where a row does not
            if self._failed or self._silence_told:
                logger.warning("The ledger can be written again.")
            self._failed = self._silence_told = False
        for job, result in zip(jobs, results[len(self._unsettled) :], strict=bool(jobs)):
            job.done.set_result(result)
        self._unsettled.clear()

    def _fail(self, jobs: list[_Job], failure: LedgerUnavailable) -> None:
        """Keep the settlements for the next transaction and fail the jobs' futures."""
        now = time.monotonic()
        if not self._failed or now >= self._next_report:
            logger.error("%s Until it can, requests are answered 503.", failure)
            self._next_report = now + REPORT_SECONDS
        self._failed = True
        for job in jobs:
            if isinstance(job.work, Settlement):
                self._unsettled.append(job.work)
            elif isinstance(job.work, Opening):  # the connection may have broken after the commit
                day, opening = transactions.day_of(self._clock()), job.work
                rejected = Settlement(opening.request_id, Usage(), "rejected", opening.skill, day)
                self._unsettled.append(replace(rejected, key_id=opening.key_id))
            job.done.set_exception(failure)
