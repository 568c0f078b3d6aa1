"""What every engine promises, the local one and the remote one: delivery, refusals, aborts and its end."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from server.engine.remote.backends import Backends
from server.engine.remote.http_stream import Target
from server.engine.remote.remote_engine import RemoteEngine, Sizes
from server.engine.sequence import Sampling
from server.engine.stream import Token
from server.errors import EngineFailed, InvalidRequest, Overloaded
from server.models.rollout import Engine as AnyEngine
from tests.exams.servers.vllm_server import VllmServer, running
from tests.server.engine.test_engine import GREEDY, collect, until
from tests.server.engine.test_engine import started as local
from tests.support.fakes import EchoRunner, FakeRunner, ScriptRunner

Started = Callable[..., AbstractContextManager[AnyEngine]]


@contextmanager
def remote(runner: FakeRunner, *, slots: int = 2, context: int = 64, max_waiting: int = 64) -> Iterator[AnyEngine]:
    with running(VllmServer(runner, slots=slots, context=context)) as server:
        sizes = Sizes("mine", context, runner.vocabulary, replies=slots, max_waiting=max_waiting)
        engine = RemoteEngine(Backends([Target(server.url)]), sizes)
        engine.start()
        try:
            yield engine
        finally:
            engine.stop()
            runner.release()


@pytest.fixture(params=[local, remote], ids=["local", "remote"])
def started(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_stop_id_is_delivered_and_ends_the_stream(started: Started) -> None:
    async def main() -> None:
        with started(EchoRunner(stop_id=9, vocabulary=10)) as engine:
            sampling = Sampling(temperature=0, max_tokens=10, stop_ids=frozenset({9}))
            tokens = await collect(engine.submit([1, 2, 3], sampling, skill="a"))
        assert tokens == [Token(1, None), Token(2, None), Token(3, None), Token(9, "stop")]

    asyncio.run(main())


def test_max_tokens_ends_the_stream_with_length(started: Started) -> None:
    async def main() -> None:
        with started(ScriptRunner([4], vocabulary=5)) as engine:
            tokens = await collect(engine.submit([0], Sampling(temperature=0, max_tokens=3), skill="a"))
        assert tokens == [Token(4, None), Token(4, None), Token(4, "length")]

    asyncio.run(main())


def test_more_requests_than_slots_all_get_their_own_reply(started: Started) -> None:
    async def main() -> None:
        with started(EchoRunner(stop_id=99, vocabulary=100)) as engine:
            sampling = Sampling(temperature=0, max_tokens=20, stop_ids=frozenset({99}))
            prompts = [list(range(start, start + 1 + start % 7)) for start in range(30)]
            streams = [engine.submit(prompt, sampling, skill="a") for prompt in prompts]
            replies = await asyncio.gather(*map(collect, streams))
            assert [[token.id for token in reply] for reply in replies] == [[*prompt, 99] for prompt in prompts]
            assert (engine.running, engine.waiting) == (0, 0)
            async with asyncio.timeout(60):
                while engine.kv_used_ratio:  # a remote engine asks for it now and then
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_closing_a_waiting_stream_takes_it_out_of_the_queue(started: Started) -> None:
    async def main() -> None:
        runner = ScriptRunner([1], vocabulary=5)
        runner.hold(1)
        with started(runner, slots=1) as engine:
            streams = [engine.submit([0], Sampling(temperature=0, max_tokens=60), skill="a") for _ in range(3)]
            await anext(streams[0])
            assert engine.waiting == 2
            await streams[2].aclose()
            assert engine.waiting == 1
            runner.release()

    asyncio.run(main())


def test_closing_wakes_a_reader_in_another_task(started: Started) -> None:
    async def main() -> None:
        runner = ScriptRunner([1], vocabulary=5)
        runner.hold(0)
        with started(runner) as engine:
            stream = engine.submit([0], GREEDY, skill="a")
            reader = asyncio.create_task(collect(stream))
            await asyncio.sleep(0)
            await stream.aclose()
            assert await asyncio.wait_for(reader, 120) == []
            runner.release()

    asyncio.run(main())


def test_a_full_queue_is_overloaded_with_a_time_to_retry(started: Started) -> None:
    async def main() -> None:
        runner = ScriptRunner([1], vocabulary=5)
        runner.hold(1)
        with started(runner, slots=1, max_waiting=2) as engine:
            streams = [engine.submit([0], GREEDY, skill="a") for _ in range(1)]
            await until(lambda: engine.running == 1)
            streams += [engine.submit([0], GREEDY, skill="a") for _ in range(2)]
            with pytest.raises(Overloaded, match="2 requests are already waiting") as raised:
                engine.submit([0], GREEDY, skill="a")
            assert raised.value.retry_after >= 1
            runner.release()
            assert [len(await collect(stream)) for stream in streams] == [10, 10, 10]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "said"),
    [
        ([], 1, "prompt is empty"),
        ([1], -1, "max_tokens is -1"),
        ([1] * 60, 5, "60 tokens and max_tokens is 5"),
        ([1, 5], 1, "contain token 5; the model's vocabulary has 5"),
    ],
)
def test_requests_that_cannot_fit_are_refused_with_the_numbers(
    started: Started, prompt: list[int], max_tokens: int, said: str
) -> None:
    async def main() -> None:
        with started(ScriptRunner([1], vocabulary=5)) as engine, pytest.raises(InvalidRequest, match=said):
            engine.submit(prompt, Sampling(max_tokens=max_tokens), skill="a")

    asyncio.run(main())


def test_stopping_ends_open_streams_and_the_thread(started: Started) -> None:
    async def main() -> None:
        with started(ScriptRunner([1], vocabulary=5, delay=0.02), slots=1) as engine:
            streams = [engine.submit([0], Sampling(temperature=0, max_tokens=60), skill="a") for _ in range(2)]
            await anext(streams[0])
            engine.stop()
            for stream in streams:
                with pytest.raises(EngineFailed, match="stopped"):
                    await collect(stream)
            with pytest.raises(EngineFailed, match="stopped"):
                engine.submit([0], GREEDY, skill="a")

    asyncio.run(main())
