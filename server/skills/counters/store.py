"""The store of rate limits, and what holds while the Redis that replicas share does not answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, TypeVar

import anyio

from server.errors import Overloaded
from server.skills.counters.leases import Leases
from server.skills.counters.redis_store import RedisStore, StoreAway
from server.skills.counters.windows import MemoryWindows, Spent, Unit

Fail = Literal["closed", "open"]
RENEW_SECONDS = 5.0
PROBE_SECONDS = 1.0  # between tries while Redis is away
RETRY_SECONDS = 5
MEANWHILE: dict[Fail, str] = {
    "closed": "requests that a limit holds for are answered 503",
    "open": "requests are counted in this process alone",
}
logger = logging.getLogger(__name__)
T = TypeVar("T")


class Store:
    """Windows and leases at `url`: `memory://`, this process; or Redis, whose absence `fail` decides about.

    `closed` refuses what cannot be counted; `open` counts in this process alone meanwhile. Both log when an absence
    begins and ends. Belongs to one asyncio loop, in which `watch` must run.
    """

    def __init__(self, url: str, fail: Fail) -> None:
        self.available = True
        """Whether the store answered last; always, for this process."""
        self.absences = 0
        self._shared = None if url.startswith("memory:") else RedisStore(url)
        self._fail = fail
        self._windows = MemoryWindows()
        self._leases = Leases()

    async def spend(self, unit: Unit, cost: int, limits: Mapping[str, int]) -> Mapping[str, Spent]:
        """Spend `cost` from the windows of all owners, or of none if it does not fit one; raises Overloaded."""

        async def alone() -> Mapping[str, Spent]:
            return self._windows.spend(unit, cost, limits)

        shared = self._shared
        return await self._counted(alone if shared is None else lambda: shared.spend(unit, cost, limits), alone)

    async def take(self, lease: str, limits: Mapping[str, int]) -> str | None:
        """Count a live reply for all owners until `give_back`; or for none, and return the owner that has no room.

        Raises Overloaded.
        """

        async def alone() -> str | None:
            return self._leases.full(limits)

        shared = self._shared
        with anyio.CancelScope(shield=True):  # a lease that Redis has given must be known, to be given back
            full = await self._counted(alone if shared is None else lambda: shared.take(lease, limits), alone)
            if full is None:
                self._leases.add(lease, limits)
        return full

    async def give_back(self, lease: str) -> None:
        """Stop counting a live reply; while Redis is away its lease lapses there by itself."""
        owners = self._leases.remove(lease)
        if owners and self._shared is not None and self.available:
            with anyio.CancelScope(shield=True):
                try:
                    await self._shared.give_back(lease, owners)
                except StoreAway as error:
                    self._lost(error)

    async def watch(self) -> None:
        """Renew the leases, notice when Redis is away, and try it until it is back; ends when it is cancelled."""
        task = asyncio.current_task()
        while self._shared is not None:
            await self._renew(self._shared)
            if task is not None and task.cancelling():  # a timeout in the driver may swallow the cancellation
                return
            await asyncio.sleep(RENEW_SECONDS if self.available else PROBE_SECONDS)

    async def close(self) -> None:
        """Close the connections, in the loop that opened them."""
        if self._shared is not None:
            await self._shared.close()

    async def _renew(self, shared: RedisStore) -> None:
        held = self._leases.by_owner()
        try:
            await shared.renew(held)
            for owner, leases in held.items():
                for lease in leases:
                    if lease not in self._leases:  # given back while it was renewed
                        await shared.give_back(lease, (owner,))
        except StoreAway as error:
            self._lost(error)
        else:
            self._found()

    async def _counted(self, shared: Callable[[], Awaitable[T]], alone: Callable[[], Awaitable[T]]) -> T:
        """The answer of the store that counts now; raises Overloaded if none may."""
        if self.available:
            try:
                return await shared()
            except StoreAway as error:
                self._lost(error)
        if self._fail == "open":
            return await alone()
        raise Overloaded(
            "Rate limits cannot be counted: their store does not answer. Nothing was generated; try again later.",
            retry_after=RETRY_SECONDS,
            reason="store",
        )

    def _lost(self, error: StoreAway) -> None:
        if self.available:
            self.available = False
            self.absences += 1
            logger.warning("The store of rate limits does not answer (%s): %s.", error, MEANWHILE[self._fail])

    def _found(self) -> None:
        if not self.available:
            self.available = True
            logger.warning("The store of rate limits answers again: limits hold over all replicas.")
