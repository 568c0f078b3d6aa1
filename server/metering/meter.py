"""Meters replies: `admit` opens a durable row, `settle` closes it once, with the tokens the engine counted.

Input is counted when the first token was sampled, since only then was all of it computed.
"""

import asyncio
import time

from server.metering.ledger import Ledger, LedgerUnavailable, Opening, Outcome, Probe, Settlement, Usage
from server.metering.metrics import Latency


class Meter:
    """Counts replies into a ledger, and their latencies into histograms."""

    def __init__(self, ledger: Ledger, latency: Latency) -> None:
        self._ledger = ledger
        self._latency = latency

    async def admit(self, opening: Opening) -> "Reservation":
        """Open a row; raises LedgerUnavailable: what cannot be counted is not served."""
        started = time.monotonic()
        await asyncio.wrap_future(self._ledger.write(opening))
        return Reservation(self, opening.request_id, opening.prompt, started)

    async def writable(self) -> bool:
        """Whether the ledger can be written; after a failure, tries."""
        if not self._ledger.writable:
            try:
                await asyncio.wrap_future(self._ledger.write(Probe()))
            except LedgerUnavailable:
                return False
        return True

    async def settle(self, reservation: "Reservation", outcome: Outcome) -> None:
        """Close a reservation's row; for Reservation."""
        self._latency.duration.observe(time.monotonic() - reservation.started)
        if reservation.first_token is not None:
            self._latency.first_token.observe(reservation.first_token - reservation.started)
        settlement = Settlement(reservation.request_id, reservation.usage, outcome)
        await asyncio.wrap_future(self._ledger.write(settlement))


class Reservation:
    """One reply being counted; `count` each sampled token, then `settle` once."""

    def __init__(self, meter: Meter, request_id: str, prompt: int, started: float) -> None:
        self.request_id = request_id
        self.started = started
        self.first_token: float | None = None
        self._meter = meter
        self._prompt = prompt
        self._cached = 0
        self._output = 0
        self._settled = False

    def count(self, *, cached: int) -> None:
        """One more token was sampled; `cached` prompt tokens were not computed again."""
        if self.first_token is None:
            self.first_token = time.monotonic()
            self._cached = cached
        self._output += 1

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return Usage(self._prompt, self._cached, self._output) if self._output else Usage()

    async def settle(self, outcome: Outcome) -> None:
        """Close the row with the tokens so far; only the first call counts. Raises LedgerUnavailable."""
        if not self._settled:
            self._settled = True
            await self._meter.settle(self, outcome)
