"""How many streams at once the server and llama-server hold within guidellm's bounds for chat, found in turns.

The same system prompt, questions and number of new tokens; each server begins anew for each trial, with as many slots
as there are users. Ours has the prompt as a skill's, llama-server is sent it with each question.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.benchmarks.peers.figure import Figure
from tests.benchmarks.serving.figures import FIRST_TOKEN_SECONDS, GAP_SECONDS, Trial, search
from tests.benchmarks.serving.loads.load import Target, Timing, crowd, reply
from tests.benchmarks.serving.loads.prompts import questions, system
from tests.benchmarks.serving.options import Options
from tests.benchmarks.serving.report import Line
from tests.benchmarks.serving.servers import llama, ours

TOKENS, WORDS, CONTEXT, WARMING = 64, 200, 512, 2
ASKED = 2.0
PATIENCE = 3  # times the seconds of a trial
PEER_THREADS = (1, 2)
Start = Callable[[int], AbstractContextManager[Target]]


class Racer:
    """A server whose limit is searched for; `start` makes it with so many slots."""

    def __init__(self, name: str, start: Start, options: Options) -> None:
        self.name = name
        self.limit: int | None = None
        self._start = start
        self._options = options
        self._search = search(options.most)
        self._users = next(self._search)

    def turn(self) -> None:
        """One trial, where the limit is not known yet."""
        if self.limit is not None:
            return
        with self._start(self._users) as target:
            trial = asyncio.run(attempt(target, self._users, self._options.seconds))
        self._options.say(f"{self.name}: {trial}")
        try:
            self._users = self._search.send(trial.good)
        except StopIteration as end:
            self.limit = end.value


def measure(options: Options) -> list[Line]:
    """One line for each number of threads that llama-server is given."""
    prompt = system(WORDS, "bench")

    def start_ours(users: int) -> AbstractContextManager[Target]:
        return ours(options.setting("ours", slots=users, context=CONTEXT), {"bench": prompt})

    def start_llama(threads: int) -> Start:
        name = f"llama-{threads}"
        return lambda users: llama(
            options.setting(name, threads=threads, slots=users, context=CONTEXT), options.gguf, prompt, options.peers
        )

    mine = Racer(f"secateur, {options.artifact.name}, {options.threads} threads", start_ours, options)
    peers = [Racer(f"llama-server, {count} threads", start_llama(count), options) for count in PEER_THREADS]
    while any(racer.limit is None for racer in (mine, *peers)):
        for racer in (mine, *peers):
            racer.turn()
    bounds = f"TTFT p99 <= {FIRST_TOKEN_SECONDS * 1000:.0f} ms, ITL p99 <= {GAP_SECONDS * 1000:.0f} ms"
    return [line(f"largest number of streams with {bounds}: {mine.name} / {peer.name}", mine, peer) for peer in peers]


def line(name: str, mine: Racer, peer: Racer) -> Line:
    """Against a peer that holds not even one stream, it counts as holding one."""
    assert mine.limit is not None
    assert peer.limit is not None
    return Line(name, [mine.limit], [peer.limit], Figure((mine.limit / max(1, peer.limit),)), ASKED)


async def attempt(target: Target, users: int, seconds: float) -> Trial:
    """So many users for so long; nobody was answered where it takes far longer than that."""
    asked = questions(users)

    async def ask() -> Timing:
        return await reply(target, next(asked), TOKENS)

    try:
        async with asyncio.timeout(PATIENCE * seconds):
            for _ in range(WARMING):  # the system prompt is computed, and pages are in memory
                await ask()
            return Trial.of(users, await crowd(ask, users, seconds), seconds)
    except TimeoutError:  # threads that spin beside others' can take minutes for one reply
        return Trial.of(users, (), seconds)
