"""Meters replies: `admit` reserves tokens, `count` makes each token durable before it is sent, `settle` closes the row.

The prompt is counted with the first sampled token, when its prefill is complete.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from server.errors import BudgetExceeded
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import (
    Admission,
    Known,
    LedgerUnavailable,
    Opening,
    Outcome,
    Refusal,
    Settlement,
    Usage,
)

RETRY_SECONDS = 0.25
ANSWER_SECONDS = 10.0  # a database may also hang without an error
STALL_SECONDS = 30.0  # how long replies wait for a ledger that cannot be written before they end as errors


NOTHING = Usage()
NOTHING = Usage()
SILENT = "it does not answer"
T = TypeVar("T")


class Ended(Struct, frozen=True):
    """A finished reply, for histograms; times in seconds since its admission."""

    skill: str
    model: str
    outcome: Outcome
    usage: Usage
    duration: float
    first_token: float | None
    waited: float | None = None
    """Until its prefill began; None if it never did."""
    granted: int = 0
    """The most output tokens allowed."""
    opened: float = 0.0
    """Until its row was open."""
    gaps: Sequence[float] = ()
    """Between consecutive counts of a choice: the inter-token latencies."""
    knowledge_tokens: int = 0
    """Prompt tokens that quoted passages took."""
    retrieval: float | None = None
    """Seconds of the search for passages; None for a skill without knowledge."""


class Answered(Exception):
    """The Idempotency-Key belongs to an earlier request, whose row is `known`."""

    def __init__(self, known: Known) -> None:
        super().__init__(known.request_id)
        self.known = known


class Observer(Protocol):
    """Records latencies."""

    def ended(self, reply: Ended) -> None:
        """Record a finished reply."""
        ...


class Meter:
    """Counts the tokens of replies into a ledger, and reports their latencies to an observer."""

    def __init__(self, ledger: Ledger, observer: Observer) -> None:
        self._ledger = ledger
        self._observer = observer
        self._step: _Step | None = None
        self._stalled_since: float | None = None

    async def admit(self, opening: Opening) -> "Reservation":
        """Reserve tokens within the budgets and open a row.

        Raises LedgerUnavailable, BudgetExceeded, or Answered for a repeated Idempotency-Key.
        """
        started = time.monotonic()
        if not self._ledger.writable:  # the ledger retries by itself: fail at once
            raise LedgerUnavailable("its last write failed or hangs")
        opened = self._ledger.open(opening)
        try:
            admission = await answer(opened)
        except LedgerUnavailable:
            opened.add_done_callback(partial(self._undo, opening))
            raise
        self._stalled_since = None
        if admission.known:
            raise Answered(admission.known)
        if admission.refused:
            raise exceeded(opening, admission.refused, self._ledger.until_next(admission.refused.period))
        return Reservation(self, opening, admission, started)

    async def writable(self) -> bool:
        """Whether the ledger is writable; after a failed transaction, tests it by an empty write."""
        if not self._ledger.writable:
            try:
                await answer(self._ledger.probe())
            except LedgerUnavailable:
                return False
        return True

    async def count(self, request_id: str, usage: Callable[[], Usage]) -> None:
        """Write a reply's token counts durably, batched with those of the same engine step; called by Reservation.

        Each try takes the counts anew: another choice of the reply may have added to them.

        Retries while the ledger cannot be written. Raises LedgerUnavailable once that has lasted STALL_SECONDS, or at
        once if another replica has closed the row as recovered.
        """
        while True:
            step = self._step = self._step or _Step(self._flush)
            step.counts[request_id] = usage()
            try:
                closed = await asyncio.shield(step.done)
                self._stalled_since = None
                break
            except LedgerUnavailable:  # the time is the outage's: replies that waited for a slot do not wait again
                now = time.monotonic()
                self._stalled_since = self._stalled_since or now
                if now - self._stalled_since > STALL_SECONDS:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
        if request_id in closed:  # by a replica that took this one for dead after it hung for minutes
            raise LedgerUnavailable("another replica has closed the reply as recovered")

    async def settle(self, ended: Ended, settlement: Settlement) -> None:
        """Close a reservation's row and report its latencies to the observer; called by Reservation."""
        self._observer.ended(ended)
        await answer(self._ledger.settle(settlement))

    def _undo(self, opening: Opening, opened: "Future[Admission]") -> None:
        """Close a row that was opened after its caller had already been refused."""
        if opened.exception() is None and not ((admission := opened.result()).refused or admission.known):
            rejected = Settlement(opening.request_id, Usage(), "rejected", opening.skill, admission.day)
            self._ledger.settle(replace(rejected, key_id=opening.key_id))

    def _flush(self) -> None:
        """Write the gathered step; later counts start the next one."""
        step, self._step = self._step, None
        assert step is not None
        written = asyncio.wrap_future(self._ledger.count(step.counts))
        written.add_done_callback(step.finish)


class _Step:
    """The counts of one engine step, gathered within one turn of the event loop and written as one job."""

    def __init__(self, flush: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.counts: dict[str, Usage] = {}
        self.done: asyncio.Future[frozenset[str]] = loop.create_future()
        self._timer = loop.call_later(ANSWER_SECONDS, self._fail, LedgerUnavailable(SILENT))
        loop.call_soon(flush)

    def finish(self, written: "asyncio.Future[frozenset[str]]") -> None:
        """Pass the result or error of the write on to all waiting replies."""
        self._timer.cancel()
        if error := written.exception():
            self._fail(error)
        elif not self.done.done():
            self.done.set_result(written.result())

    def _fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # retrieved, since every waiter may be gone


def added(first: Usage, second: Usage) -> Usage:
    """The sum of two counts."""
    return Usage(first.prompt + second.prompt, first.cached + second.cached, first.output + second.output)


def sum_of(usage: Usage) -> int:
    """Prompt and output tokens."""
    return usage.prompt + usage.output


def exceeded(opening: Opening, refusal: Refusal, retry_after: int) -> BudgetExceeded:
    """The error for a budget without a token left; a key's names no skill, whose budget others share."""
    if refusal.holder == "key":
        return BudgetExceeded(
            f"This API key has no tokens left for this {refusal.period} that fit the request.",
            code="key_budget_exceeded",
            retry_after=retry_after,
        )
    return BudgetExceeded(
        f"The skill {opening.skill!r} has no tokens left for this {refusal.period} that fit the request.",
        code="budget_exceeded",
        retry_after=retry_after,
    )


async def answer(written: "Future[T]") -> T:
    """The ledger's answer; raises LedgerUnavailable after ANSWER_SECONDS, though the write may still succeed."""
    waiting = asyncio.wrap_future(written)
    done, _ = await asyncio.wait({waiting}, timeout=ANSWER_SECONDS)
    if not done:
        waiting.add_done_callback(lambda late: late.cancelled() or late.exception())  # retrieved, since nobody waits
        raise LedgerUnavailable(SILENT)
    return waiting.result()


class Reservation:
    """A reply being counted: `count` each token before it is sent, then `settle` once."""

    def __init__(self, meter: Meter, opening: Opening, admission: Admission, started: float) -> None:
        self.request_id = opening.request_id
        self.granted = admission.granted
        self._meter = meter
        self._opening = opening
        self._day = admission.day
        self._started = started
        self._opened = time.monotonic() - started
        self._first_token: float | None = None
        self._last_steps: dict[int, float] = {}
        self._gaps: list[float] = []
        self._usage = Usage()
        self._settled = False

    @property
    def usage(self) -> Usage:
        """The tokens counted so far."""
        return self._usage

    @property
    def prompt(self) -> int:
        """The prompt tokens that were reserved."""
        return self._opening.prompt

    @property
    def full(self) -> Outcome:
        """The outcome of using up all granted tokens: `budget` if a budget granted fewer than wanted, else `length`."""
        return "budget" if self.granted < self._opening.wanted else "length"

    async def count(self, tokens: int, *, prompt: Usage = NOTHING, choice: int = 0) -> None:
        """Count sampled tokens of a choice; returns once they are durable.

        `prompt` has the tokens of a prompt that was computed, and the cached ones of these: count each prompt once.
        """
        now = time.monotonic()
        if tokens:
            if self._first_token is None:
                self._first_token = now - self._started
            if choice in self._last_steps:
                self._gaps.append(now - self._last_steps[choice])
            self._last_steps[choice] = now
        self._usage = added(added(self._usage, prompt), Usage(output=tokens))
        await self._meter.count(self.request_id, lambda: self._usage)

    async def settle(
        self, outcome: Outcome, *, computed: Usage = NOTHING, waited: float | None = None, reported: bool = False
    ) -> None:
        """Close the row with all that was `computed`, counted or not; idempotent. Raises LedgerUnavailable.

        `reported`: a backend counted `computed`.
        """
        if self._settled:
            return
        self._settled = True
        by_ids = self._opening.usage_from == "ids"
        if not by_ids or sum_of(computed) > sum_of(self._usage):  # the engine was ahead of the client at the end
            self._usage = computed
        duration = time.monotonic() - self._started
        skill, model, first = self._opening.skill, self._opening.model, self._first_token
        ended = Ended(
            skill,
            model,
            outcome,
            self.usage,
            duration,
            first,
            waited,
            self.granted,
            self._opened,
            self._gaps,
            self._opening.knowledge_tokens,
            self._opening.retrieval,
        )
        key = self._opening.key_id
        end = Settlement(self.request_id, self.usage, outcome, skill, self._day, duration, first, key)
        if reported:
            end = replace(end, usage_from="backend")
        await self._meter.settle(ended, end)
