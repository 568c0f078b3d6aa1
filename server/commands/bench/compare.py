"""Compares two servers on the same prompts, in turns: TTFT, and tokens a second of one stream and of several.

Each round asks both servers, the first of them in turn, so that noise on the machine hits both; its result is a ratio.
Any server with OpenAI's chat completions will do. Definitions of `vllm bench serve`, at the client: TTFT is from
sending the request to the first text, and tokens/s is (tokens - 1) / (last - first).
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from msgspec import Struct

from server.commands.start.talk import Reply, Service
from server.errors import SecateurError

SUBJECTS = (
    "an old apple tree",
    "a harbour in winter",
    "a clock maker",
    "the last tram",
    "a garden wall",
    "a lighthouse",
)
MEASURES = {"first_token_ms": "TTFT, ms", "single": "tokens/s, 1 stream", "batched": "tokens/s, {streams} streams"}
"""The measures of a turn, with their heading."""


class Target(Struct, frozen=True):
    """One of the two servers, and the model to ask for."""

    service: Service
    model: str

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.model} at {self.service.url}"


class Load(Struct, frozen=True):
    """What is asked in each turn."""

    rounds: int = 5
    streams: int = 8
    """Replies at once."""
    tokens: int = 128
    """Most tokens of a reply."""
    prompts: tuple[str, ...] = ()
    """Prompts to take in turn; without them, stories about `SUBJECTS`."""

    def prompt(self, number: int) -> str:
        """The prompt of this number, begun by the number, so that no cache knows it."""
        if self.prompts:
            return f"{number}. {self.prompts[number % len(self.prompts)]}"
        return f"{number}. Write a long story about {SUBJECTS[number % len(SUBJECTS)]}, with every detail."


class Turn(Struct, frozen=True):
    """One turn of one server; rates are in tokens a second."""

    first_token_ms: float
    single: float
    batched: float
    """Of all streams together, from the first request sent to the last token."""
    counted: bool
    """Whether the server reported tokens; if not, pieces of text are counted instead."""


class Ratio(Struct, frozen=True):
    """The second server's figure over the first's."""

    median: float
    low: float
    high: float


class Comparison(Struct, frozen=True):
    """Every turn of both servers, and the ratios of the rounds by measure."""

    names: tuple[str, str]
    load: Load
    turns: tuple[tuple[Turn, Turn], ...]
    """One pair for each round, in the order of `names`."""
    ratios: dict[str, Ratio]


Take = Callable[[Target, Load, int], Turn]


def compare(targets: tuple[Target, Target], load: Load, take: Take | None = None) -> Comparison:
    """Take `load.rounds` turns of both servers; raises SecateurError naming the server that does not answer."""
    take = take or turn
    for target in targets:  # both are warm before the first round
        take(target, Load(rounds=1, streams=1, tokens=4), 0)
    rounds = []
    for number in range(load.rounds):
        print(f"round {number + 1} of {load.rounds}", file=sys.stderr)
        first = number % 2
        taken = {index: take(targets[index], load, 1 + number) for index in (first, 1 - first)}
        rounds.append((taken[0], taken[1]))
    ratios = {name: _ratio([getattr(b, name) / getattr(a, name) for a, b in rounds]) for name in MEASURES}
    return Comparison((targets[0].name, targets[1].name), load, tuple(rounds), ratios)


def turn(target: Target, load: Load, number: int) -> Turn:
    """One stream alone, then `load.streams` at once, all with prompts of this turn."""
    start = number * (load.streams + 1)
    alone, _ = _reply(target, load, start)
    with ThreadPoolExecutor(load.streams) as pool:
        together = list(pool.map(lambda n: _reply(target, load, n), range(start + 1, start + 1 + load.streams)))
    elapsed = max(sent + reply.last for reply, sent in together) - min(sent for _, sent in together)
    return Turn(
        first_token_ms=alone.first * 1000,
        single=(_tokens(alone) - 1) / (alone.last - alone.first),
        batched=sum(_tokens(reply) for reply, _ in together) / elapsed,
        counted=alone.completion_tokens > 0,
    )


def table(found: Comparison) -> str:
    """Medians of both servers, and the ratio of the second to the first with its range, as a Markdown table."""
    lines = ["| | first | second | second / first (range) |", "|---|---|---|---|"]
    for name, heading in MEASURES.items():
        first, second = (statistics.median(getattr(pair[side], name) for pair in found.turns) for side in (0, 1))
        ratio = found.ratios[name]
        cells = (f"{first:.1f}", f"{second:.1f}", f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
        lines.append(f"| {heading.format(streams=found.load.streams)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_notes(found)])


def _notes(found: Comparison) -> Iterator[str]:
    yield f"first: {found.names[0]}"
    yield f"second: {found.names[1]}"
    yield f"{len(found.turns)} rounds in turns, medians; replies of at most {found.load.tokens} tokens"
    for side, name in enumerate(found.names):
        if not all(pair[side].counted for pair in found.turns):
            yield f"{name} reports no usage: its rates count pieces of text instead of tokens"


def _reply(target: Target, load: Load, number: int) -> tuple[Reply, float]:
    """The numbers of one reply, and when it was asked for."""
    reply, sent = Reply(), monotonic()
    messages = [{"role": "user", "content": load.prompt(number)}]
    for _ in target.service.reply(target.model, messages, reply, max_tokens=load.tokens):
        pass
    if reply.pieces < 2 or reply.last <= reply.first:
        raise SecateurError(f"{target.name} answered with fewer than two pieces of text, which have no rate")
    return reply, sent


def _tokens(reply: Reply) -> int:
    return reply.completion_tokens or reply.pieces


def _ratio(values: Sequence[float]) -> Ratio:
    return Ratio(statistics.median(values), min(values), max(values))
