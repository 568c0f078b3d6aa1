"""The engine with fake runners: delivery, aborts, and failures that leave nobody waiting."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from server.engine.batch import Batch
from server.engine.engine import Engine
from server.engine.runners import Runner
from server.engine.sequence import Sampling
from server.engine.stream import Stream, Token
from server.errors import EngineFailed
from tests.support.fakes import ScriptRunner

GREEDY = Sampling(temperature=0, max_tokens=10)


@contextmanager
def started(runner: Runner, *, slots: int = 2, context: int = 64, max_waiting: int = 64) -> Iterator[Engine]:
    engine = Engine(runner, slots=slots, context=context, batch_tokens=16, max_waiting=max_waiting)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


async def collect(stream: Stream) -> list[Token]:
    return [token async for token in stream]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` is true, at most two minutes."""
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_second_prompt_of_the_skill_reports_its_cached_tokens() -> None:
    async def main() -> None:
        with started(ScriptRunner([1], vocabulary=5)) as engine:
            for skill, expected in (("a", 0), ("a", 32), ("b", 0)):
                stream = engine.submit([2] * 40, Sampling(temperature=0, max_tokens=1), skill=skill)
                await collect(stream)
                assert stream.cached == expected

    asyncio.run(main())


def test_closing_a_stream_frees_its_slot_within_one_step() -> None:
    async def main() -> None:
        runner = ScriptRunner([1], vocabulary=5)
        runner.hold(1)
        with started(runner, slots=1) as engine:
            stream = engine.submit([0], Sampling(temperature=0, max_tokens=60), skill="a")
            other = engine.submit([0], Sampling(temperature=0, max_tokens=1), skill="a")
            await anext(stream)
            await until(lambda: runner.steps == 2)
            await stream.aclose()
            runner.release()
            await collect(other)
            assert runner.steps == 3  # the one in progress, then the other's only one
            assert await collect(stream) == []
            await stream.aclose()
            assert engine.running == 0

    asyncio.run(main())


def test_a_failing_runner_fails_every_stream_and_later_ones() -> None:
    async def main() -> None:
        with started(ScriptRunner([1], vocabulary=5, fail_after=3)) as engine:
            streams = [engine.submit([0], GREEDY, skill="a") for _ in range(4)]
            replies = await asyncio.wait_for(asyncio.gather(*map(collect, streams), return_exceptions=True), 120)
            assert [str(reply) for reply in replies] == ["The engine failed; the server's log says why."] * 4
            with pytest.raises(EngineFailed, match="log says why"):
                engine.submit([0], GREEDY, skill="a")
            assert engine.failure
            assert (engine.running, engine.waiting) == (0, 0)

    asyncio.run(main())


def test_nan_logits_fail_instead_of_becoming_text(caplog: pytest.LogCaptureFixture) -> None:
    class NanRunner(ScriptRunner):
        def forward(self, batch: Batch) -> Tensor:
            return super().forward(batch) * float("nan")

    async def main() -> None:
        with started(NanRunner([1], vocabulary=5)) as engine, pytest.raises(EngineFailed):
            await collect(engine.submit([0], GREEDY, skill="a"))

    asyncio.run(main())
    assert "NaN" in caplog.text


def test_an_idle_engine_does_not_compute() -> None:
    async def main() -> None:
        runner = ScriptRunner([1], vocabulary=5)
        with started(runner) as engine:
            for _ in range(2):
                await collect(engine.submit([0], GREEDY, skill="a"))
        assert runner.steps == 20  # none between the two replies

    asyncio.run(main())


def test_a_closed_loop_does_not_disturb_other_readers() -> None:
    with started(ScriptRunner([1], vocabulary=5, delay=0.005)) as engine:

        async def leave() -> None:
            engine.submit([0], Sampling(temperature=0, max_tokens=30), skill="a")

        async def stay() -> list[Token]:
            return await collect(engine.submit([0], Sampling(temperature=0, max_tokens=40), skill="a"))

        asyncio.run(leave())
        assert len(asyncio.run(stay())) == 40


def test_a_step_wakes_the_loop_once_for_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop, calls = asyncio.get_running_loop(), 0
        call = loop.call_soon_threadsafe

        def counted(*given: Any) -> asyncio.Handle:
            nonlocal calls
            calls += 1
            return call(*given)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        engine = Engine(ScriptRunner([4], vocabulary=5), slots=4, context=64, batch_tokens=16)
        streams = [engine.submit([0], GREEDY, skill="a") for _ in range(4)]
        engine.start()
        replies = await asyncio.gather(*map(collect, streams))
        engine.stop()
        assert [len(reply) for reply in replies] == [10] * 4
        assert calls == 10

    asyncio.run(main())
