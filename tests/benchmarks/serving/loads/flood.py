"""TTFT p99 of a skill's steady visitors while another skill sends FLOOD requests at once, and without them.

Both skills' prompts are in the prefix cache. Each round measures the visitors without the flood, then with it, on one
server whose queue takes the whole flood.
"""

import asyncio
from contextlib import suppress

from tests.benchmarks.serving.figures import PERCENT, percentile, ratio
from tests.benchmarks.serving.loads.load import LoadError, Target, Timing, crowd, reply
from tests.benchmarks.serving.loads.prompts import questions, system
from tests.benchmarks.serving.options import Options
from tests.benchmarks.serving.report import Line
from tests.benchmarks.serving.servers import ours

FLOOD, WORDS, TOKENS, CONTEXT, SLOTS, WARMING = 500, 200, 32, 1024, 8, 2
VISITORS = (1, 4)
ASKED = 1.5


def measure(options: Options) -> list[Line]:
    """A line for each number of steady visitors."""
    setting = options.setting("flood", slots=SLOTS, context=CONTEXT)._replace(max_waiting=FLOOD)
    with ours(setting, {name: system(WORDS, name) for name in ("steady", "flood")}) as target:
        return [line(options, target, visitors) for visitors in VISITORS]


def line(options: Options, target: Target, visitors: int) -> Line:
    """The report line of `visitors` who each ask again once answered."""
    rounds = [asyncio.run(pair(target, visitors, options.seconds)) for _ in range(options.rounds)]
    for calm, flooded in rounds:
        shown = ", ".join(f"{p99(one):.0f} ms (n {len(one)})" for one in (calm, flooded))
        options.say(f"{visitors} visitors: TTFT p99 without the flood, with it: {shown}")
    with_flood, without = ([p99(both[place]) for both in rounds] for place in (1, 0))
    name = f"TTFT p99 of {visitors} visitors, {options.artifact.name}, ms: beside {FLOOD} requests of another / without"
    return Line(name, with_flood, without, ratio(with_flood, without), ASKED, most=True)


async def pair(target: Target, visitors: int, seconds: float) -> tuple[list[Timing], list[Timing]]:
    """The visitors' replies without the flood and with it."""
    steady, flood = questions(1), questions(2)

    async def ask() -> Timing:
        return await reply(target._replace(model="steady"), next(steady), TOKENS)

    async def pour() -> None:
        with suppress(LoadError):  # refused ones too are part of a flood
            await reply(target._replace(model="flood"), next(flood), TOKENS)

    for _ in range(WARMING):
        await ask()
        await pour()
    calm = await crowd(ask, visitors, seconds)
    poured = [asyncio.create_task(pour()) for _ in range(FLOOD)]
    try:
        flooded = await crowd(ask, visitors, seconds)
    finally:
        for task in poured:
            task.cancel()
        await asyncio.gather(*poured, return_exceptions=True)
    return calm, flooded


def p99(timings: list[Timing]) -> float:
    """In milliseconds."""
    return 1000 * percentile((timing.first_token for timing in timings), PERCENT)
