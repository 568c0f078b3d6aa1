"""Meters replies: `admit` reserves, `count` makes each token durable before it leaves, `settle` closes the row once.

Input is counted when the first token was sampled, since only then was all of it computed.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from msgspec import Struct

from server.errors import BudgetExceeded
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Admission, Known, LedgerUnavailable, Opening, Outcome, Settlement, Usage

RETRY_SECONDS = 0.25
ANSWER_SECONDS = 10.0  # a database may also stand still, and say nothing
STALL_SECONDS = 30.0  # so long may a reply wait for a ledger that cannot be written, before it ends as an error


SILENT = "it does not answer"
T = TypeVar("T")


class Ended(Struct, frozen=True):
    """What histograms are told of a reply; times are seconds."""

    skill: str
    model: str
    outcome: Outcome
    usage: Usage
    duration: float
    first_token: float | None
    waited: float | None = None
    """Until the engine began with it."""
    granted: int = 0
    """The most tokens that it might have had."""


class Answered(Exception):
    """The Idempotency-Key belongs to an earlier request, whose row is `known`."""

    def __init__(self, known: Known) -> None:
        super().__init__(known.request_id)
        self.known = known


class Observer(Protocol):
    """Whoever counts latencies."""

    def ended(self, reply: Ended) -> None:
        """One more reply ended."""
        ...


class Meter:
    """Counts replies into a ledger, and tells an observer how long they took."""

    def __init__(self, ledger: Ledger, observer: Observer) -> None:
        self._ledger = ledger
        self._observer = observer
        self._step: _Step | None = None

    async def admit(self, opening: Opening) -> "Reservation":
        """Reserve tokens and open a row.

        Raises LedgerUnavailable (what cannot be counted is not served), BudgetExceeded or Answered.
        """
        started = time.monotonic()
        if not self._ledger.writable:  # it tries again by itself, and nobody has to wait for that
            raise LedgerUnavailable("it could not be a moment ago")
        opened = self._ledger.open(opening)
        try:
            admission = await answer(opened)
        except LedgerUnavailable:
            opened.add_done_callback(partial(self._undo, opening))
            raise
        if admission.known:
            raise Answered(admission.known)
        if admission.refused:
            raise BudgetExceeded(
                opening.skill, admission.refused, retry_after=self._ledger.until_next(admission.refused)
            )
        return Reservation(self, opening, admission, started)

    async def writable(self) -> bool:
        """Whether the ledger can be written; after a failure, tries."""
        if not self._ledger.writable:
            try:
                await answer(self._ledger.probe())
            except LedgerUnavailable:
                return False
        return True

    async def count(self, request_id: str, usage: Usage) -> None:
        """Make a count durable, together with all that are asked for at this moment; for Reservation.

        While the ledger cannot be written it waits, and raises LedgerUnavailable after STALL_SECONDS; at once where
        another replica has closed the row.
        """
        deadline = time.monotonic() + STALL_SECONDS
        while True:
            step = self._step = self._step or _Step(self._flush)
            step.counts[request_id] = usage
            try:
                closed = await asyncio.shield(step.done)
                break
            except LedgerUnavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
        if request_id in closed:  # a replica that stood still for minutes is taken for dead, and its rows are closed
            raise LedgerUnavailable("the reply was closed as recovered meanwhile")

    async def settle(self, ended: Ended, settlement: Settlement) -> None:
        """Close a reservation's row; for Reservation."""
        self._observer.ended(ended)
        await answer(self._ledger.settle(settlement))

    def _undo(self, opening: Opening, opened: "Future[Admission]") -> None:
        """Close a row that was opened after its caller had been told that it cannot be."""
        if opened.exception() is None and (admission := opened.result()).granted:
            self._ledger.settle(Settlement(opening.request_id, Usage(), "rejected", opening.skill, admission.day))

    def _flush(self) -> None:
        """Write the step that was gathered; what comes from now on is the next one."""
        step, self._step = self._step, None
        assert step is not None
        written = asyncio.wrap_future(self._ledger.count(step.counts))
        written.add_done_callback(step.finish)


class _Step:
    """The counts of the replies that got a token at one moment: those of one engine step, written as one job."""

    def __init__(self, flush: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.counts: dict[str, Usage] = {}
        self.done: asyncio.Future[frozenset[str]] = loop.create_future()
        self._timer = loop.call_later(ANSWER_SECONDS, self._fail, LedgerUnavailable(SILENT))
        loop.call_soon(flush)

    def finish(self, written: "asyncio.Future[frozenset[str]]") -> None:
        """Pass on how the writing ended."""
        self._timer.cancel()
        if error := written.exception():
            self._fail(error)
        elif not self.done.done():
            self.done.set_result(written.result())

    def _fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # whoever waited may have left


async def answer(written: "Future[T]") -> T:
    """What the ledger answers; raises LedgerUnavailable where it does not in time, though it may still do its work."""
    waiting = asyncio.wrap_future(written)
    done, _ = await asyncio.wait({waiting}, timeout=ANSWER_SECONDS)
    if not done:
        waiting.add_done_callback(lambda late: late.cancelled() or late.exception())  # nobody is left to tell
        raise LedgerUnavailable(SILENT)
    return waiting.result()


class Reservation:
    """One reply being counted; `count` each token before it leaves, then `settle` once."""

    def __init__(self, meter: Meter, opening: Opening, admission: Admission, started: float) -> None:
        self.request_id = opening.request_id
        self.granted = admission.granted
        self._meter = meter
        self._opening = opening
        self._day = admission.day
        self._started = started
        self._first_token: float | None = None
        self._cached = 0
        self._output = 0
        self._settled = False

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return Usage(self._opening.prompt, self._cached, self._output) if self._output else Usage()

    @property
    def full(self) -> Outcome:
        """What it means that the reply has all the tokens it was granted."""
        return "budget" if self.granted < self._opening.wanted else "length"

    async def count(self, *, cached: int, tokens: int = 1) -> None:
        """More tokens were sampled; returns once the ledger has them. `cached` of the prompt were not computed."""
        if self._first_token is None:
            self._first_token = time.monotonic() - self._started
            self._cached = cached
        self._output += tokens
        await self._meter.count(self.request_id, self.usage)

    async def settle(self, outcome: Outcome, *, sampled: int, cached: int, waited: float | None = None) -> None:
        """Close the row with all that the engine sampled; only the first call counts. Raises LedgerUnavailable."""
        if self._settled:
            return
        self._settled = True
        if sampled > self._output:  # the engine was ahead of the reader when the reply ended
            self._output, self._cached = sampled, cached
        duration = time.monotonic() - self._started
        skill, model, first = self._opening.skill, self._opening.model, self._first_token
        ended = Ended(skill, model, outcome, self.usage, duration, first, waited, self.granted)
        end = Settlement(self.request_id, self.usage, outcome, skill, self._day, duration, first)
        await self._meter.settle(ended, end)
