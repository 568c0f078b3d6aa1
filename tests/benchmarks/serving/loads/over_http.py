"""Throughput of the server over HTTP against its engine alone, in turns: the cost of the server itself."""

import asyncio
import itertools

from tests.benchmarks.serving.figures import ratio
from tests.benchmarks.serving.loads.load import Timing, together
from tests.benchmarks.serving.loads.prompts import questions, system
from tests.benchmarks.serving.options import Options
from tests.benchmarks.serving.report import Line
from tests.benchmarks.serving.servers import alone, ours

STREAMS, TOKENS, WORDS = 8, 128, 200
ASKED = 0.9


def measure(options: Options) -> list[Line]:
    """The report line."""
    prompt, asked = system(WORDS, "bench"), questions(1)
    both = (options.setting("over-http"), options.setting("alone"))
    with ours(both[0], {"bench": prompt}) as target, alone(both[1], "bench", prompt) as engine:
        served, bare = [], []
        for number in range(options.rounds + 1):
            chosen = list(itertools.islice(asked, STREAMS))
            timings = asyncio.run(together(target, chosen, TOKENS))
            seconds = engine.seconds(chosen, TOKENS)
            if number:  # the first fills the prefix cache with the skill's prompt
                served.append(rate(timings))
                bare.append(STREAMS * TOKENS / seconds)
                options.say(f"round {number}: over HTTP {served[-1]:.0f} tokens/s, engine alone {bare[-1]:.0f}")
    name = f"chat over HTTP, {STREAMS} streams, {options.artifact.name}, tokens/s: server / engine alone"
    return [Line(name, served, bare, ratio(served, bare), ASKED)]


def rate(timings: list[Timing]) -> float:
    """Tokens a second from the first request sent to the last text."""
    return sum(one.tokens for one in timings) / (max(one.events[-1] for one in timings) - min(t.sent for t in timings))
