"""A skill's limits before anything is generated: requests, tokens and sessions a minute, and concurrent replies.

A skill's limits hold for all its callers together; a visitor's for one conversation or one client address.
"""

import ipaddress
import math
from collections import Counter
from collections.abc import Mapping

from limits.errors import StorageError

from server.errors import InvalidRequest, Overloaded, RateLimited
from server.skills.skill import Skill
from server.skills.windows import Spent, Unit, open_windows

BUSY_RETRY_SECONDS = 2
STORE_RETRY_SECONDS = 5


class RateLimits:
    """Counts in the store at `url`; concurrent replies are counted in this process alone."""

    def __init__(self, url: str = "memory://") -> None:
        self._windows = open_windows(url)
        self._live: Counter[str] = Counter()

    async def enter(self, skill: Skill) -> Mapping[str, str]:
        """Count a request, and a live reply until `leave`; returns headers. Raises RateLimited or Overloaded."""
        if skill.concurrent_replies is not None and self._live[skill.name] >= skill.concurrent_replies:
            raise RateLimited(
                f"The skill {skill.name!r} allows {skill.concurrent_replies} concurrent replies, all in use.",
                retry_after=BUSY_RETRY_SECONDS,
                reason="concurrency",
            )
        self._live[skill.name] += 1  # before the first await, so that no other request takes the same place
        try:
            if skill.requests_per_minute is None:
                return {}
            return await self._spend("requests", skill.name, 1, skill.requests_per_minute)
        except BaseException:
            self.leave(skill)
            raise

    def leave(self, skill: Skill) -> None:
        """End a live reply."""
        self._live[skill.name] -= 1

    async def spend(self, skill: Skill, tokens: int) -> Mapping[str, str]:
        """Count `tokens`, prompt and longest reply, against the skill's limit; returns OpenAI's rate-limit headers.

        Raises RateLimited, Overloaded, or InvalidRequest if they exceed the limit of a whole minute.
        """
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
        return await self._spend("tokens", skill.name, tokens, limit)

    async def message(self, skill: Skill, conversation: str, address: str) -> None:
        """Count a visitor's message for its conversation and its client address; raises RateLimited or Overloaded."""
        limits = {
            f"{skill.name}/{conversation}": skill.visitor_requests_per_minute,
            f"{skill.name}@{client_network(address)}": skill.address_requests_per_minute,
        }
        for owner, limit in limits.items():
            await self._spend("requests", owner, 1, limit)

    async def rating(self, skill: Skill, conversation: str) -> None:
        """Count a rating, with the same limit as messages; raises RateLimited or Overloaded."""
        owner = f"{skill.name}/{conversation}/ratings"
        await self._spend("requests", owner, 1, skill.visitor_requests_per_minute)

    async def session(self, skill: Skill, address: str) -> None:
        """Count a new widget session of a client address; raises RateLimited or Overloaded."""
        await self._spend("sessions", f"{skill.name}@{client_network(address)}", 1, skill.sessions_per_minute)

    async def close(self) -> None:
        """Close the connections to Redis, in the loop that used them."""
        await self._windows.close()

    async def _spend(self, unit: Unit, owner: str, cost: int, limit: int) -> Mapping[str, str]:
        """Headers with what is left; raises RateLimited, or Overloaded if the store does not answer."""
        try:
            spent = await self._windows.spend(unit, owner, cost, limit)
        except (StorageError, OSError) as error:
            raise Overloaded(
                f"Rate limits cannot be counted ({type(error).__name__}).",
                retry_after=STORE_RETRY_SECONDS,
                reason="store",
            ) from None
        if not spent.allowed:
            raise RateLimited(
                f"Too many {unit}: {limit} a minute are allowed.",
                retry_after=max(1, math.ceil(spent.reset)),
                reason=unit,
                headers=_headers(unit, limit, spent),
            )
        return _headers(unit, limit, spent)


def _headers(unit: Unit, limit: int, spent: Spent) -> Mapping[str, str]:
    """OpenAI's rate-limit headers."""
    return {
        f"x-ratelimit-limit-{unit}": str(limit),
        f"x-ratelimit-remaining-{unit}": str(spent.remaining),
        f"x-ratelimit-reset-{unit}": f"{math.ceil(spent.reset)}s",
    }


def client_network(address: str) -> str:
    """The client behind an address with or without a port: an IPv4 host, or an IPv6 /64."""
    try:
        found = ipaddress.ip_address(address if address.count(":") > 1 else address.partition(":")[0])
    except ValueError:
        bare, bracket, _ = address.removeprefix("[").partition("]")
        return client_network(bare) if bracket else address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
