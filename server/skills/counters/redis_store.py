"""Windows and leases in a Redis that replicas share."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from server.errors import ConfigError
from server.skills.counters.windows import WINDOW_SECONDS, Spent, Unit

REDIS_SECONDS = 2.0  # to connect, and for each answer
LEASE_SECONDS = 30.0
"""After which the leases of a killed replica lapse; a live one renews its own sooner."""
PREFIX = "secateur"
TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for index, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  if redis.call('ZCARD', key) >= tonumber(ARGV[index + 2]) then return index end
end
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, now + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', key, ARGV[2])
end
return 0
"""
"""Take the lease ARGV[1] for ARGV[2] ms from all of KEYS, whose limits follow; or return the index of a full one."""
RENEW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for index = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[index]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""
"""Extend the leases ARGV[2...] of KEYS[1] to ARGV[1] ms from now, and take again what Redis lost."""


class StoreAway(Exception):
    """Redis does not answer, or refuses; the text names the driver's error, which may hold no secret."""


class RedisStore:
    """The store at `url`; each method raises StoreAway. Raises ConfigError for a URL that cannot be used.

    Requests are counted exactly, tokens by a sliding counter, since Redis would log each token alone. Leases are sorted
    sets by the time of their end, on Redis's own clock.
    """

    def __init__(self, url: str) -> None:
        try:
            self._open(url)
        except Exception as error:  # of any kind; its text may hold the password
            raise ConfigError(
                f"`rate_limits` cannot be used ({type(error).__name__}); Redis needs `secateur[redis]`"
            ) from None

    def _open(self, url: str) -> None:
        from redis.asyncio import ConnectionPool, Redis  # late: of the extra `redis`
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as Disconnected
        from redis.exceptions import RedisError

        self._failures: tuple[type[Exception], ...] = (StorageError, RedisError, OSError)
        self._pool = ConnectionPool.from_url(
            url,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            # Once: a pooled connection may have broken while it was idle.
            retry=Retry(NoBackoff(), 1, supported_errors=(Disconnected,)),
        )
        storage = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            wrap_exceptions=True,
            key_prefix=PREFIX,
            connection_pool=self._pool,  # type: ignore[arg-type]  # documented, and typed as a number
        )
        self._exact = MovingWindowRateLimiter(storage)
        self._counter = SlidingWindowCounterRateLimiter(storage)
        self._redis = Redis(connection_pool=self._pool)
        self._take = self._redis.register_script(TAKE)
        self._renew = self._redis.register_script(RENEW)

    async def spend(self, unit: Unit, cost: int, limits: Mapping[str, int]) -> dict[str, Spent]:
        """Spend as MemoryWindows does; of two attempts at the same instant a refused one may stay half counted."""
        limiter: RateLimiter = self._counter if unit == "tokens" else self._exact
        items = {owner: RateLimitItemPerSecond(limit, WINDOW_SECONDS) for owner, limit in limits.items()}
        with self._answering():
            fits = dict.fromkeys(items, True)
            if len(items) > 1:  # a hit cannot be taken back
                tested = await asyncio.gather(
                    *(limiter.test(item, unit, owner, cost=cost) for owner, item in items.items())
                )
                fits = dict(zip(items, tested, strict=True))
            if all(fits.values()):
                for owner, item in items.items():
                    fits[owner] = await limiter.hit(item, unit, owner, cost=cost)
                    if not fits[owner]:
                        break
            return {
                owner: await _spent(limiter, item, (unit, owner), allowed=fits[owner]) for owner, item in items.items()
            }

    async def take(self, lease: str, limits: Mapping[str, int]) -> str | None:
        """Take a lease for LEASE_SECONDS from all owners; or from none, and return the owner that has no room."""
        names = [_name(owner) for owner in limits]
        with self._answering():
            full = await self._take(keys=names, args=[lease, _milliseconds(LEASE_SECONDS), *limits.values()])
        return None if full == 0 else list(limits)[full - 1]

    async def renew(self, leases: Mapping[str, tuple[str, ...]]) -> None:
        """Extend the leases of each owner to LEASE_SECONDS from now; without any, ask only whether Redis answers."""
        with self._answering():
            await self._redis.ping()
            for owner, held in leases.items():
                await self._renew(keys=[_name(owner)], args=[_milliseconds(LEASE_SECONDS), *held])

    async def give_back(self, lease: str, owners: tuple[str, ...]) -> None:
        """Give a lease back to its owners."""
        with self._answering():
            for owner in owners:
                await self._redis.zrem(_name(owner), lease)

    async def close(self) -> None:
        """Close the connections, in the loop that opened them."""
        await self._pool.aclose()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            cause = error.__cause__ or error
            raise StoreAway(type(cause).__name__) from None


async def _spent(limiter: RateLimiter, item: RateLimitItemPerSecond, name: tuple[str, str], *, allowed: bool) -> Spent:
    """What is left of a window."""
    reset, remaining = await limiter.get_window_stats(item, *name)
    return Spent(allowed, remaining, min(max(reset - time.time(), 0.0), WINDOW_SECONDS))


def _name(owner: str) -> str:
    return f"{PREFIX}:live:{owner}"


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
