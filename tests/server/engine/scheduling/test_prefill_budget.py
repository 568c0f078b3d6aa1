"""Prefill beside replies: chunks fit into the target time, and never become too small."""

import asyncio
import time

import pytest
from torch import Tensor

from server.engine.batch import Batch
from server.engine.engine import Engine
from server.engine.scheduling.prefill_budget import LEAST, PASS_SECONDS, PrefillBudget
from server.engine.scheduling.scheduler import Scheduler
from server.engine.sequence import Sampling, Sequence
from tests.support.fakes import ScriptRunner

ID_SECONDS = PASS_SECONDS / 20


def test_the_budget_follows_the_cost_of_passes() -> None:
    budget = PrefillBudget()
    assert budget.tokens(3, 512) == 512  # nothing is recorded yet
    budget.record(100, 100 * ID_SECONDS * 1.001)
    assert budget.tokens(3, 512) == 19
    assert budget.tokens(3, 10) == 10
    assert budget.tokens(0, 512) == 512  # nobody reads
    assert budget.tokens(60, 512) == 60 + LEAST  # no prompt starves
    budget.record(1, 1.0)
    assert budget.tokens(3, 512) == 19
    for _ in range(50):
        budget.record(100, 100 * ID_SECONDS / 2)
    assert budget.tokens(3, 512) in (39, 40)


def test_the_fixed_cost_of_a_pass_is_no_cost_of_its_tokens() -> None:
    budget = PrefillBudget()
    for _ in range(20):
        for count in (20, 60):
            budget.record(count, ID_SECONDS * (8 + 0.6 * count))
    assert budget.tokens(3, 512) in (19, 20), "20 = 8 + 0.6 * 20"
    assert budget.tokens(3, 512, 2 * PASS_SECONDS) in (52, 53), "40 = 8 + 0.6 * 53"


@pytest.mark.parametrize("strange", [50, 90])
def test_a_pass_of_few_slow_tokens_hides_at_most_half_of_a_token_s_cost(strange: int) -> None:
    budget = PrefillBudget()
    budget.record(10, strange * ID_SECONDS)
    budget.record(100, 100 * ID_SECONDS)
    mean = (strange + 100) / 2
    assert budget.tokens(3, 512, 10 * PASS_SECONDS) == int(55 + (200 - mean) / (mean / 55 / 2))


def test_a_pass_of_zero_seconds_sets_no_limit() -> None:
    budget = PrefillBudget()
    budget.record(100, 0.0)
    assert budget.tokens(3, 512) == 512


@pytest.mark.parametrize("known", [True, False])
def test_a_prompt_beside_a_reply_is_chunked_to_fit(known: bool) -> None:
    scheduler = Scheduler(slots=2, context=600, batch_tokens=512, max_waiting=5)
    scheduler.add(Sequence("a", (1,), Sampling(max_tokens=40)))
    scheduler.commit(scheduler.schedule(), [3])
    if known:
        scheduler.prefill_budget.record(100, 100 * ID_SECONDS * 0.999)
    scheduler.add(Sequence("b", tuple(range(200)), Sampling(max_tokens=1)))
    assert [len(chunk.ids) for chunk in scheduler.schedule().chunks] == ([1, 19] if known else [1, 200])


class Slow(ScriptRunner):
    """Takes a fixed time for each id."""

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
    assert runner.batches[0].tokens == 100  # nobody was reading
    beside = [batch.tokens for batch in runner.batches if len(batch.chunks) == 2]
    assert len(beside) >= 5
    assert max(beside) <= 20
