"""Counts of the last minute: in this process, or in a Redis that replicas share."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from server.errors import ConfigError

WINDOW_SECONDS = 60
REDIS_SECONDS = 2.0  # to connect, and for each answer
Unit = Literal["requests", "tokens", "sessions"]


class Spent(NamedTuple):
    """The result of one attempt to spend from a window: whether it was allowed, and what is left."""

    allowed: bool
    """Whether the attempt fitted and was counted."""
    remaining: int
    reset: float
    """Seconds until more can be spent; after a refusal, until the same attempt fits."""


class Windows(Protocol):
    """Moving windows of WINDOW_SECONDS, by unit and owner."""

    async def spend(self, unit: Unit, owner: str, cost: int, limit: int) -> Spent:
        """Spend `cost` if at most `limit` is then spent within the window."""
        ...

    async def close(self) -> None:
        """Close connections, in the loop that opened them."""


class MemoryWindows:
    """Exact moving windows in this process; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[tuple[Unit, str], _Window] = OrderedDict()
        """The one spent from least recently is first."""

    async def spend(self, unit: Unit, owner: str, cost: int, limit: int) -> Spent:
        """Spend `cost` if at most `limit` is then spent within the window."""
        now = self._clock()
        self._forget(now - WINDOW_SECONDS)
        window = self._windows.get((unit, owner)) or _Window()
        window.expire(now - WINDOW_SECONDS)
        excess = window.total + cost - limit
        if excess <= 0:
            window.add(now, cost)
            self._windows[unit, owner] = window
            self._windows.move_to_end((unit, owner))
        reset = WINDOW_SECONDS - (now - window.when_freed(max(1, excess)))
        return Spent(excess <= 0, max(0, limit - window.total), reset)

    async def close(self) -> None:
        """Nothing is open."""

    def _forget(self, before: float) -> None:
        """Drop the windows in which nothing was spent since `before`."""
        while self._windows and next(iter(self._windows.values())).latest <= before:
            self._windows.popitem(last=False)


class _Window:
    """The amounts spent from one limit, the oldest first."""

    def __init__(self) -> None:
        self.total = 0
        self._spent: deque[tuple[float, int]] = deque()

    @property
    def latest(self) -> float:
        return self._spent[-1][0]

    def add(self, now: float, cost: int) -> None:
        self._spent.append((now, cost))
        self.total += cost

    def expire(self, before: float) -> None:
        while self._spent and self._spent[0][0] <= before:
            self.total -= self._spent.popleft()[1]

    def when_freed(self, amount: int) -> float:
        """The time at which the last of the oldest `amount` units was spent; they all expire WINDOW_SECONDS later."""
        freed = accumulate(cost for _, cost in self._spent)
        return next(when for (when, _), sum in zip(self._spent, freed, strict=True) if sum >= amount)


class RedisWindows:
    """Windows in Redis: exact for requests; tokens by a sliding counter, since Redis would log each token alone."""

    def __init__(self, url: str) -> None:
        from redis.asyncio import ConnectionPool  # late: of the extra `redis`

        self._pool = ConnectionPool.from_url(url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS)
        storage = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            wrap_exceptions=True,
            key_prefix="secateur",
            connection_pool=self._pool,  # type: ignore[arg-type]  # documented, and typed as a number
        )
        self._exact = MovingWindowRateLimiter(storage)
        self._counter = SlidingWindowCounterRateLimiter(storage)

    async def spend(self, unit: Unit, owner: str, cost: int, limit: int) -> Spent:
        """Spend as `Windows.spend`; raises StorageError or OSError if Redis does not answer."""
        item = RateLimitItemPerSecond(limit, WINDOW_SECONDS)
        limiter = self._counter if unit == "tokens" else self._exact
        allowed = await limiter.hit(item, unit, owner, cost=cost)
        reset, remaining = await limiter.get_window_stats(item, unit, owner)
        return Spent(allowed, remaining, min(max(reset - time.time(), 0.0), WINDOW_SECONDS))

    async def close(self) -> None:
        """Close the connections, in the loop that opened them."""
        await self._pool.aclose()


def open_windows(url: str) -> Windows:
    """Windows at a `memory:`, `redis:` or `rediss:` URL; raises ConfigError."""
    if url.startswith("memory:"):
        return MemoryWindows()
    try:
        return RedisWindows(url)
    except Exception as error:  # of any kind; its text may hold the password
        raise ConfigError(
            f"`rate_limits` cannot be used ({type(error).__name__}); Redis needs `secateur[redis]`"
        ) from None
