"""Limits of requests, tokens, sessions and concurrent replies, before anything is generated.

A skill's limits hold for all its callers together, a key's over all skills that it opens, a visitor's for one
conversation or one client address. Where several apply, all must hold.
"""

import ipaddress
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from server.errors import InvalidRequest, RateLimited, Reason
from server.skills.counters.store import Fail, Store
from server.skills.counters.windows import Spent, Unit
from server.skills.key_limits import Allowance
from server.skills.skill import Skill

BUSY_RETRY_SECONDS = 2


class Entered(NamedTuple):
    """A live reply, until `RateLimits.leave`."""

    lease: str
    """Empty if no limit of concurrent replies applies."""
    headers: Mapping[str, str]


class RateLimits:
    """The limits, counted in the store at `url`; `fail` says what holds while that does not answer."""

    def __init__(self, url: str = "memory://", fail: Fail = "closed") -> None:
        self.store = Store(url, fail)

    async def enter(self, skill: Skill, key: Allowance) -> Entered:
        """Count a request, and a live reply; returns rate-limit headers too. Raises RateLimited or Overloaded."""
        lease = await self._take(_both(skill, key, "concurrent_replies"))
        try:
            limits = _both(skill, key, "requests_per_minute")
            return Entered(lease, _headers("requests", await self._spend("requests", 1, limits)))
        except BaseException:
            await self.leave(lease)
            raise

    async def leave(self, lease: str) -> None:
        """End a live reply."""
        if lease:
            await self.store.give_back(lease)

    async def spend(self, skill: Skill, key: Allowance, tokens: int) -> Mapping[str, str]:
        """Count `tokens`, prompt and longest reply; returns OpenAI's rate-limit headers.

        Raises RateLimited, Overloaded, or InvalidRequest if they exceed the limit of a whole minute.
        """
        limits = _both(skill, key, "tokens_per_minute")
        for limit in limits:
            if tokens > limit.most:
                raise InvalidRequest(
                    f"The prompt and max_tokens need {tokens} tokens; {limit.subject} allows {limit.most} a minute.",
                    param="max_tokens",
                    code="tokens_per_minute_exceeded",
                    reason="tokens",
                )
        return _headers("tokens", await self._spend("tokens", tokens, limits))

    async def message(self, skill: Skill, conversation: str, address: str) -> None:
        """Count a visitor's message for its conversation and its client address; raises RateLimited or Overloaded."""
        limits = (
            _Limit(f"{skill.name}/{conversation}", skill.visitor_requests_per_minute, "this conversation"),
            _Limit(f"{skill.name}@{client_network(address)}", skill.address_requests_per_minute, "your address"),
        )
        await self._spend("requests", 1, limits)

    async def rating(self, skill: Skill, conversation: str) -> None:
        """Count a rating, with the same limit as messages; raises RateLimited or Overloaded."""
        owner = f"{skill.name}/{conversation}/ratings"
        await self._spend("requests", 1, [_Limit(owner, skill.visitor_requests_per_minute, "this conversation")])

    async def session(self, skill: Skill, address: str) -> None:
        """Count a new widget session of a client address; raises RateLimited or Overloaded."""
        owner = f"{skill.name}@{client_network(address)}"
        await self._spend("sessions", 1, [_Limit(owner, skill.sessions_per_minute, "your address")])

    async def close(self) -> None:
        """Close the connections to Redis, in the loop that used them."""
        await self.store.close()

    async def _take(self, limits: "Sequence[_Limit]") -> str:
        """A lease of a concurrent reply; empty if none is limited."""
        if not limits:
            return ""
        lease = secrets.token_hex(16)
        full = await self.store.take(lease, {limit.owner: limit.most for limit in limits})
        if full is None:
            return lease
        [limit] = [limit for limit in limits if limit.owner == full]
        raise _refused(limit, "concurrency", f"{limit.most} concurrent replies, all in use", BUSY_RETRY_SECONDS, {})

    async def _spend(self, unit: Unit, cost: int, limits: "Sequence[_Limit]") -> "list[_Left]":
        """What is left of each limit; raises RateLimited for the first that is exceeded, or Overloaded."""
        if not limits:
            return []
        spent = await self.store.spend(unit, cost, {limit.owner: limit.most for limit in limits})
        left = [_Left(limit, spent[limit.owner]) for limit in limits]
        for limit, state in left:
            if not state.allowed:
                retry_after = max(1, math.ceil(state.reset))
                raise _refused(limit, unit, f"{limit.most} {unit} a minute", retry_after, _headers(unit, left))
        return left


class _Limit(NamedTuple):
    """A limit that applies to a request."""

    owner: str
    """The name that it is counted by."""
    most: int
    subject: str
    """Whose it is, for messages."""
    rank: int = 0
    """Whose headers are shown: those of the highest; 0 for none, since other callers' use would show in them."""


class _Left(NamedTuple):
    limit: _Limit
    spent: Spent


def _both(skill: Skill, key: Allowance, name: str) -> list[_Limit]:
    """The key's and the skill's limit of this name, if any; the key's own is refused first."""
    found = (
        (f"key:{key.owner}", getattr(key.limits, name), "this API key", 2),
        (skill.name, getattr(skill, name), f"the skill {skill.name!r}", int(skill.rate_limit_headers)),
    )
    return [_Limit(owner, most, subject, rank) for owner, most, subject, rank in found if most is not None]


def _refused(
    limit: _Limit, reason: Reason, allowance: str, retry_after: int, headers: Mapping[str, str]
) -> RateLimited:
    """The error for a limit that is exceeded."""
    message = f"{limit.subject[0].upper()}{limit.subject[1:]} allows {allowance}."
    if limit.owner.startswith("key:"):
        return RateLimited(message, retry_after=retry_after, reason=reason, headers=headers, code="key_rate_limited")
    return RateLimited(message, retry_after=retry_after, reason=reason, headers=headers, code="rate_limited")


def _headers(unit: Unit, left: Sequence[_Left]) -> Mapping[str, str]:
    """OpenAI's rate-limit headers for the key's own limit, or for the skill's if it shows it."""
    shown = max(left, key=lambda one: one.limit.rank, default=None)
    if shown is None or not shown.limit.rank:
        return {}
    return {
        f"x-ratelimit-limit-{unit}": str(shown.limit.most),
        f"x-ratelimit-remaining-{unit}": str(shown.spent.remaining),
        f"x-ratelimit-reset-{unit}": f"{math.ceil(shown.spent.reset)}s",
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
