"""The store of rate limits in a real Redis: leases of replicas, and what holds while Redis is away."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from server.errors import Overloaded
from server.skills.counters import redis_store, store
from server.skills.counters.store import Fail, Store
from tests.support.redis_server import RedisServer, redis

__all__ = ["redis"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lapse and try again within tenths of a second."""
    monkeypatch.setattr(redis_store, "REDIS_SECONDS", 120.0)
    monkeypatch.setattr(store, "PROBE_SECONDS", 0.01)
    monkeypatch.setattr(store, "RENEW_SECONDS", 0.02)


@asynccontextmanager
async def replica(url: str, fail: Fail = "closed", *, watched: bool = True) -> AsyncIterator[Store]:
    """A store as a server has it; without its watch it is like a replica that was killed."""
    made = Store(url, fail)
    watching = asyncio.create_task(made.watch()) if watched else None
    try:
        yield made
    finally:
        if watching is not None:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        await made.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await condition():
            await asyncio.sleep(0.005)


def test_replicas_share_places_and_each_gives_back_its_own(redis: RedisServer) -> None:
    async def through() -> None:
        async with replica(redis.url) as one, replica(redis.url) as two:
            limits = {"key": 3, "skill": 5}
            taken = [await (one, two)[index % 2].take(str(index), limits) for index in range(3)]
            assert taken == [None, None, None]
            assert [await one.take("more", limits), await two.take("more", limits)] == ["key", "key"]
            assert await two.take("a", {"other key": 3, "skill": 5}) is None
            assert await two.take("b", {"skill": 5}) is None
            assert await one.take("c", {"other key": 3, "skill": 5}) == "skill", "the full one takes no place elsewhere"
            assert await one.take("d", {"other key": 2}) is None
            await one.give_back("0")
            await one.give_back("0")
            assert await two.take("again", limits) is None
            assert await two.take("more", {"key": 3}) == "key"

    asyncio.run(through())


def test_many_at_once_take_no_more_places_than_there_are(redis: RedisServer) -> None:
    async def through() -> None:
        async with replica(redis.url) as one, replica(redis.url) as two:
            full = await asyncio.gather(*((one, two)[index % 2].take(f"{index}", {"a": 7}) for index in range(60)))
            assert full.count(None) == 7

    asyncio.run(through())


def test_leases_of_a_killed_replica_lapse_and_those_of_a_live_one_are_renewed(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "LEASE_SECONDS", 1.5)

    async def through() -> None:
        async with replica(redis.url) as alive, replica(redis.url, watched=False) as killed:
            assert await alive.take("alive", {"a": 2}) is None
            assert await killed.take("killed", {"a": 2}) is None
            assert await alive.take("early", {"a": 2}) == "a"
            await until(lambda: taken(alive, "late"))
            assert await alive.take("more", {"a": 2}) == "a", "the live one's place was renewed meanwhile"

    async def taken(one: Store, lease: str) -> bool:
        return await one.take(lease, {"a": 2}) is None

    asyncio.run(through())


def test_live_replies_are_counted_again_by_a_redis_that_forgot_them(redis: RedisServer) -> None:
    async def through() -> None:
        async with replica(redis.url) as one, replica(redis.url, watched=False) as two:
            assert await one.take("live", {"a": 1}) is None
            redis.stop()
            await until(lambda: away(one))
            redis.start()
            await until(lambda: back(one))
            assert await two.take("more", {"a": 1}) == "a"
            await one.give_back("live")
            assert await two.take("more", {"a": 1}) is None

    asyncio.run(through())


async def away(one: Store) -> bool:
    return not one.available


async def back(one: Store) -> bool:
    return one.available


def test_closed_refuses_while_redis_is_away_and_says_so_once(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def through() -> None:
        async with replica(redis.url) as one:
            assert (await one.spend("requests", 1, {"a": 3}))["a"].allowed
            redis.stop()
            for _ in range(3):
                with pytest.raises(Overloaded, match="their store does not answer") as refused:
                    await one.spend("requests", 1, {"a": 3})
                assert (refused.value.retry_after, refused.value.reason) == (store.RETRY_SECONDS, "store")
                with pytest.raises(Overloaded):
                    await one.take("r", {"a": 3})
            redis.start()
            await until(lambda: back(one))
            assert (await one.spend("requests", 1, {"a": 3}))["a"].allowed
            assert one.absences == 1

    with caplog.at_level(logging.WARNING):
        asyncio.run(through())
    assert [record.getMessage() for record in caplog.records] == [
        "The store of rate limits does not answer (ConnectionError): requests that a limit holds for are answered 503.",
        "The store of rate limits answers again: limits hold over all replicas.",
    ]


def test_open_counts_in_each_process_alone_while_redis_is_away(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def through() -> None:
        async with replica(redis.url, "open") as one, replica(redis.url, "open", watched=False) as two:
            assert await one.take("before", {"a": 2}) is None
            redis.stop()
            for each in (one, two):
                spent = [(await each.spend("requests", 1, {"a": 3}))["a"].allowed for _ in range(4)]
                assert spent == [True, True, True, False]
            assert [await one.take(name, {"a": 2}) for name in ("r1", "r2")] == [None, "a"], "with the one from before"
            assert [await two.take(name, {"a": 2}) for name in ("r3", "r4", "r5")] == [None, None, "a"]
            redis.start()
            await until(lambda: back(one))
            assert await one.take("more", {"a": 2}) == "a", "those begun meanwhile are counted by Redis now"
            await one.give_back("r1")
            assert await one.take("more", {"a": 2}) is None

    with caplog.at_level(logging.WARNING):
        asyncio.run(through())
    texts = [record.getMessage() for record in caplog.records]
    assert texts[0].endswith("(ConnectionError): requests are counted in this process alone.")
    assert texts[-1].endswith("limits hold over all replicas.")
    assert len(texts) == 3  # the second replica has no watch


def test_an_idle_server_notices_that_redis_is_away(redis: RedisServer) -> None:
    async def through() -> None:
        async with replica(redis.url) as one:
            redis.stop()
            await until(lambda: away(one))

    asyncio.run(through())


def test_a_lease_given_back_while_it_is_renewed_does_not_stay(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def through() -> None:
        async with replica(redis.url, watched=False) as one:
            assert await one.take("r", {"a": 1}) is None
            shared = one._shared
            assert shared is not None
            renew = shared.renew

            async def slow(held: dict[str, tuple[str, ...]]) -> None:
                await one.give_back("r")  # its removal overtakes the renewal
                await renew(held)

            monkeypatch.setattr(shared, "renew", slow)
            await one._renew(shared)
            assert await one.take("next", {"a": 1}) is None

    asyncio.run(through())


def test_a_cancellation_that_the_driver_swallows_ends_the_watch(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the server would hang as it stops: seen when a cancellation met the end of one of the driver's timeouts."""
    monkeypatch.setattr(store, "RENEW_SECONDS", 3600.0)

    async def through() -> None:
        async with replica(redis.url, watched=False) as one:
            begun = asyncio.Event()

            async def swallowing(_: object) -> None:
                begun.set()
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)

            monkeypatch.setattr(one._shared, "renew", swallowing)
            watching = asyncio.create_task(one.watch())
            await begun.wait()
            watching.cancel()
            async with asyncio.timeout(120):
                await asyncio.wait([watching])

    asyncio.run(through())
