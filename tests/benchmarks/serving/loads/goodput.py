"""Goodput: concurrent streams that the server and llama-server hold within guidellm's bounds for chat, in turns.

The same system prompt, questions and number of new tokens; each trial starts a fresh server with a slot for each user.
Ours has the prompt in its skill; llama-server receives it with each question.
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
    """A server whose limit is searched for; `start(slots)` launches it."""

    def __init__(self, name: str, start: Start, options: Options) -> None:
        self.name = name
        self.limit: int | None = None
        self._start = start
        self._options = options
        self._search = search(options.most)
        self._users = next(self._search)

    def turn(self) -> None:
        """Run the next trial, unless the limit is known."""
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
    """One report line for each thread count of llama-server."""
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
    """The report line; a peer that holds no stream counts as holding one."""
    assert mine.limit is not None
    assert peer.limit is not None
    return Line(name, [mine.limit], [peer.limit], Figure((mine.limit / max(1, peer.limit),)), ASKED)


async def attempt(target: Target, users: int, seconds: float) -> Trial:
    """A trial of `users` for `seconds`; a server that takes far longer counts as answering nobody."""
    asked = questions(users)

    async def ask() -> Timing:
        return await reply(target, next(asked), TOKENS)

    try:
        async with asyncio.timeout(PATIENCE * seconds):
            for _ in range(WARMING):  # warms the prefix cache and the page cache
                await ask()
            return Trial.of(users, await crowd(ask, users, seconds), seconds)
    except TimeoutError:  # spinning threads on shared cores can take minutes for a reply
        return Trial.of(users, (), seconds)
