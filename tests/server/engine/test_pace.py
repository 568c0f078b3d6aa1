"""How long a prompt may make readers wait: its pieces are as large as there is time for, and never too small."""

import asyncio
import time

import pytest
from torch import Tensor

from server.engine.batch import Batch
from server.engine.engine import Engine
from server.engine.pace import LEAST, PASS_SECONDS, Pace
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sampling, Sequence
from tests.support.fakes import ScriptRunner

ID_SECONDS = PASS_SECONDS / 20


def test_a_pace_is_what_passes_cost() -> None:
    pace = Pace()
    assert pace.room(3, 512) == 512  # nothing is known yet
    pace.learn(100, 100 * ID_SECONDS * 1.001)
    assert pace.room(3, 512) == 19
    assert pace.room(3, 10) == 10
    assert pace.room(0, 512) == 512  # nobody reads
    assert pace.room(60, 512) == 60 + LEAST  # however slow it is, prompts go on
    pace.learn(1, 1.0)
    assert pace.room(3, 512) == 19
    for _ in range(50):
        pace.learn(100, 100 * ID_SECONDS / 2)
    assert pace.room(3, 512) in (39, 40)


def test_a_pass_without_cost_says_nothing() -> None:
    pace = Pace()
    pace.learn(100, 0.0)
    assert pace.room(3, 512) == 512


@pytest.mark.parametrize("known", [True, False])
def test_a_prompt_beside_a_reply_comes_in_pieces_that_fit(known: bool) -> None:
    scheduler = Scheduler(slots=2, context=600, batch_tokens=512, max_waiting=5)
    scheduler.add(Sequence("a", (1,), Sampling(max_tokens=40)))
    scheduler.commit(scheduler.schedule(), [3])
    if known:
        scheduler.pace.learn(100, 100 * ID_SECONDS * 0.999)
    scheduler.add(Sequence("b", tuple(range(200)), Sampling(max_tokens=1)))
    assert [len(chunk.ids) for chunk in scheduler.schedule().chunks] == ([1, 19] if known else [1, 200])


class Slow(ScriptRunner):
    """Needs its time for each id."""

    def __init__(self) -> None:
        super().__init__([4], vocabulary=5)
        self.batches: list[Batch] = []

    def forward(self, batch: Batch) -> Tensor:
        self.batches.append(batch)
        time.sleep(batch.tokens * ID_SECONDS)
        return super().forward(batch)


def test_the_engine_learns_from_its_own_passes() -> None:
    runner = Slow()

    async def main() -> None:
        engine = Engine(runner, slots=2, context=600, batch_tokens=512)
        first = engine.submit([1] * 100, Sampling(temperature=0, max_tokens=200), skill="a")
        engine.start()
        await anext(first)
        second = engine.submit([2] * 100, Sampling(temperature=0, max_tokens=1), skill="b")
        assert [token.finish async for token in second] == ["length"]
        await first.aclose()
        engine.stop()

    asyncio.run(main())
    assert runner.batches[0].tokens == 100  # nobody read meanwhile
    beside = [batch.tokens for batch in runner.batches if len(batch.chunks) == 2]
    assert len(beside) >= 5
    assert max(beside) <= 20
