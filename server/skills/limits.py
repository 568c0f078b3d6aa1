"""Limits of a skill before anything is generated: requests and tokens a minute, replies at once, messages of a visitor.

They hold for the whole skill, whoever asks; a visitor's own hold for one conversation, or for one address.
"""

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import MovingWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string
from msgspec import Struct

from server.errors import ConfigError, InvalidRequest, Overloaded, RateLimited
from server.skills.skill import Skill

WINDOW_SECONDS = 60
BUSY_RETRY_SECONDS = 2
STORE_RETRY_SECONDS = 5
STORE_SECONDS = 2.0
SWEEP_SECONDS = 10.0


Counted = Literal["requests", "tokens", "sessions"]


class Window(Struct, frozen=True):
    """One limit as it stands: what is left of it, and in how many seconds there will be more."""

    name: Counted
    limit: int
    remaining: int
    reset: float

    @property
    def headers(self) -> Mapping[str, str]:
        """As OpenAI's clients and dashboards know them."""
        return {
            f"x-ratelimit-limit-{self.name}": str(self.limit),
            f"x-ratelimit-remaining-{self.name}": str(self.remaining),
            f"x-ratelimit-reset-{self.name}": f"{math.ceil(self.reset)}s",
        }


class Memory(MemoryStorage):
    """The library's storage in this process, swept seldom and at once.

    Its own sweep hands each key to a thread, again and again: a thousand visitors cost it half of a core.
    """

    def __init__(self) -> None:
        super().__init__()
        self._swept = 0.0

    async def _MemoryStorage__schedule_expiry(self) -> None:  # noqa: N802  (what the library calls before each hit)
        now = time.time()
        if abs(now - self._swept) < SWEEP_SECONDS:
            return
        self._swept = now
        for key, entries in list(self.events.items()):
            # Those of the future are from before the clock was set back; they would count until it is there again.
            kept = [entry for entry in entries if entry.atime <= now < entry.expiry]
            if kept:
                self.events[key] = kept
            else:
                await self.clear(key)
        for key, expiry in list(self.expirations.items()):
            if not now < expiry <= now + 2 * WINDOW_SECONDS:
                await self.clear(key)


class Gate:
    """Counts in memory, or in the Redis at `url` that replicas share; `live` replies are this process's own."""

    def __init__(self, url: str = "memory://") -> None:
        self._storage = storage = open_storage(url)
        # Requests exactly; tokens as an interpolation of two windows, since a log of every token would fill the memory.
        self._requests = MovingWindowRateLimiter(storage)
        self._tokens = SlidingWindowCounterRateLimiter(storage)
        self._live: Counter[str] = Counter()

    async def enter(self, skill: Skill) -> Mapping[str, str]:
        """One more reply, until `leave`; returns headers that say what is left. Raises RateLimited or Overloaded."""
        if skill.concurrent_replies is not None and self._live[skill.name] >= skill.concurrent_replies:
            raise RateLimited(
                f"The skill {skill.name!r} makes {skill.concurrent_replies} replies at once and has as many.",
                retry_after=BUSY_RETRY_SECONDS,
                reason="concurrency",
            )
        self._live[skill.name] += 1  # before the first await, so that no other request sees the same place
        try:
            if skill.requests_per_minute is None:
                return {}
            window = await self._hit(self._requests, "requests", skill.requests_per_minute, skill.name)
            return window.headers
        except BaseException:
            self.leave(skill)
            raise

    def leave(self, skill: Skill) -> None:
        """One reply less."""
        self._live[skill.name] -= 1

    async def spend(self, skill: Skill, tokens: int) -> Mapping[str, str]:
        """Count the tokens that a reply may need; returns headers. Raises RateLimited, or InvalidRequest for ever."""
        limit = skill.tokens_per_minute
        if limit is None:
            return {}
        if tokens > limit:
            raise InvalidRequest(
                f"The prompt and max_tokens need {tokens} tokens; the skill {skill.name!r} allows {limit} a minute.",
                param="max_tokens",
                code="tokens_per_minute_exceeded",
                reason="tokens",
            )
        return (await self._hit(self._tokens, "tokens", limit, skill.name, tokens)).headers

    async def message(self, skill: Skill, conversation: str, address: str) -> None:
        """One message of a widget conversation, from an address that may open many; raises RateLimited."""
        await self._hit(self._requests, "requests", skill.visitor_requests_per_minute, f"{skill.name}/{conversation}")
        everybody = f"{skill.name}@{_network(address)}"
        await self._hit(self._requests, "requests", skill.address_requests_per_minute, everybody)

    async def rating(self, skill: Skill, conversation: str) -> None:
        """One rating of a reply, of which there may be as many as messages; raises RateLimited."""
        who = f"{skill.name}/{conversation}/ratings"
        await self._hit(self._requests, "requests", skill.visitor_requests_per_minute, who)

    async def session(self, skill: Skill, address: str) -> None:
        """One session of the widget from an address; raises RateLimited."""
        await self._hit(self._requests, "sessions", skill.sessions_per_minute, f"{skill.name}@{_network(address)}")

    async def close(self) -> None:
        """Let go of the Redis, where there is one; within the loop that used it."""
        if isinstance(self._storage, RedisStorage):
            await self._storage.bridge.get_connection().aclose()  # type: ignore[attr-defined]  # of every bridge

    async def _hit(self, limiter: RateLimiter, name: Counted, limit: int, who: str, cost: int = 1) -> Window:
        item = RateLimitItemPerSecond(limit, WINDOW_SECONDS)
        try:
            allowed = await limiter.hit(item, name, who, cost=cost)
            reset, remaining = await limiter.get_window_stats(item, name, who)
        except (StorageError, OSError) as error:
            raise Overloaded(
                f"Rate limits cannot be counted ({type(error).__name__}).",
                retry_after=STORE_RETRY_SECONDS,
                reason="store",
            ) from None
        wait = min(max(reset - time.time(), 0.0), WINDOW_SECONDS)
        window = Window(name, limit, remaining, wait)
        if not allowed:
            raise RateLimited(
                f"Too many {name}: {limit} a minute are allowed.",
                retry_after=max(1, math.ceil(wait)),
                reason=name,
                headers=window.headers,
            )
        return window


def _network(address: str) -> str:
    """Whom an address, perhaps with a port, stands for: of IPv6 its /64, since each customer has that many."""
    try:
        found = ipaddress.ip_address(address if address.count(":") > 1 else address.partition(":")[0])
    except ValueError:
        bare, bracket, _ = address.removeprefix("[").partition("]")
        return _network(bare) if bracket else address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def open_storage(url: str) -> Storage:
    """Where limits are counted; raises ConfigError for what cannot be used."""
    if url.startswith("memory:"):
        return Memory()
    options = {
        "implementation": "redispy",
        "wrap_exceptions": True,
        "key_prefix": "secateur",
        "socket_timeout": STORE_SECONDS,
        "socket_connect_timeout": STORE_SECONDS,
    }
    try:
        storage = storage_from_string(f"async+{url}", **options)  # type: ignore[arg-type]
    except Exception as error:  # the library raises what its drivers raise, which may hold a password
        raise ConfigError(
            f"`rate_limits` cannot be used ({type(error).__name__}); Redis needs `secateur[redis]`"
        ) from None
    assert isinstance(storage, Storage)
    return storage
