"""TTFT over HTTP with a skill's prompt of a thousand tokens: in the prefix cache, and not in it.

Each round has a skill of its own, so its first question misses the cache and its second hits it.
"""

import asyncio

from tests.benchmarks.serving.figures import ratio
from tests.benchmarks.serving.loads.load import Target, Timing, reply
from tests.benchmarks.serving.loads.prompts import questions, system
from tests.benchmarks.serving.options import Options
from tests.benchmarks.serving.report import Line
from tests.benchmarks.serving.servers import ours

WORDS, TOKENS, CONTEXT = 850, 8, 2048
ASKED = 0.1


def measure(options: Options) -> list[Line]:
    """The report line."""
    names = [f"bench-{number}" for number in range(options.rounds + 1)]
    with ours(options.setting("warm", context=CONTEXT), {name: system(WORDS, name) for name in names}) as target:
        pairs = [asyncio.run(pair(target._replace(model=name))) for name in names][1:]
    prompts = {timing.prompt for both in pairs for timing in both}
    for cold, warm in pairs:
        times = f"cold {cold.first_token * 1000:.1f} ms, warm {warm.first_token * 1000:.1f} ms"
        options.say(f"{times}, of which {warm.cached} tokens were kept")
    warm_ms, cold_ms = ([both[place].first_token * 1000 for both in pairs] for place in (1, 0))
    name = (
        f"TTFT over HTTP, prompt of {min(prompts)} to {max(prompts)} tokens, {options.artifact.name}, ms: warm / cold"
    )
    return [Line(name, warm_ms, cold_ms, ratio(warm_ms, cold_ms), ASKED, most=True, form=".1f")]


async def pair(target: Target) -> tuple[Timing, Timing]:
    """TTFT of a skill's first question and of its second."""
    first, second = (next(questions(seed)) for seed in (1, 2))
    return await reply(target, first, TOKENS), await reply(target, second, TOKENS)
