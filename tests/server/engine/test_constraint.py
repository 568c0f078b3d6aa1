"""Replies under a grammar: the ids of a plain loop at any batch, guessing or not; forced ids take no pass."""

import asyncio
import random
from collections.abc import Sequence as Ids

import numpy
import pytest
import torch
from torch import Tensor

from server.engine.batch import Batch
from server.engine.engine import Engine
from server.engine.sampling.constraint import Mask
from server.engine.sampling.masks import masks
from server.engine.sampling.reference import draw, sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.scheduling.speculation import PromptLookup
from server.engine.sequence import Sampling, Sequence
from server.engine.stream import Stream, Token
from server.errors import InvalidRequest
from tests.support.fakes import Cells, ScriptRunner

VOCABULARY = 40
STOP = 39
RUN = (20, 21, 22, 23)


class Lines:
    """A grammar of lines: an id of 0 to 5, the forced RUN, an id of 6 to 11; after `count` lines it is complete.

    STOP may end it after any line.
    """

    lark = ""

    def __init__(self, count: int) -> None:
        self.count = count

    def begin(self) -> "LinesState":
        return LinesState(self.count)


class LinesState:
    def __init__(self, count: int) -> None:
        self.count = count
        self.ids: list[int] = []
        self.failure = ""

    @property
    def error(self) -> InvalidRequest:
        return InvalidRequest(f"The grammar cannot go on: {self.failure}.")

    @property
    def forced(self) -> int | None:
        return RUN[place - 1] if 0 < (place := len(self.ids) % 6) < 5 else None

    @property
    def complete(self) -> bool:
        return len(self.ids) == 6 * self.count

    def fail(self, why: str) -> None:
        self.failure = self.failure or why

    def fits(self, id: int) -> bool:
        return id in self._next(self.ids)

    def accept(self, id: int) -> None:
        assert id in self._next(self.ids) or self.failure
        self.ids.append(id)

    def allowed(self, guess: Ids[int]) -> int:
        for place, id in enumerate(guess):
            if id == STOP or id not in self._next([*self.ids, *guess[:place]]):
                return place
        return len(guess)

    def masks(self, guess: Ids[int]) -> list[Mask]:
        assert self.allowed(guess) == len(guess)
        return [bits(self._next([*self.ids, *guess[:place]])) for place in range(len(guess) + 1)]

    def _next(self, ids: list[int]) -> tuple[int, ...]:
        place = len(ids) % 6
        if 0 < place < 5:
            return (RUN[place - 1],)
        return (*range(6), *((STOP,) if ids else ())) if place == 0 else tuple(range(6, 12))


def bits(ids: Ids[int]) -> Mask:
    words = numpy.zeros(2, numpy.int32)
    for id in ids:
        words.view(numpy.uint8)[id // 8] |= 1 << id % 8
    return words


def row(text: Ids[int]) -> Tensor:
    """Logits after a text, which mostly repeats the id of six places before."""
    generator = torch.Generator().manual_seed(hash(tuple(text[-7:])) % (1 << 40))
    logits = torch.randn(VOCABULARY, generator=generator)
    if len(text) > 6:
        logits[text[-6]] += 5
    return logits


def plain(sampling: Sampling, prompt: tuple[int, ...]) -> list[int]:
    """The reply, an id at a time: each is drawn from what the grammar allows."""
    sequence = Sequence("", prompt, sampling)
    assert sampling.constraint
    state = sampling.constraint.begin()
    while sequence.generated < sampling.max_tokens:
        (mask,) = state.masks(())
        allowed = torch.tensor([id for id in range(VOCABULARY) if mask.view(numpy.uint8)[id // 8] >> id % 8 & 1])
        sequence.tokens.append(draw(row(sequence.tokens), sequence, allowed))
        if sequence.tokens[-1] == STOP:
            break
        state.accept(sequence.tokens[-1])
        if state.complete:
            break
    return sequence.tokens[len(prompt) :]


class Passes:
    """Runs a scheduler to its end over a cache that knows its contents."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.cells = Cells()
        self.count = 0
        self.rows = 0

    def run(self) -> None:
        while not self.scheduler.idle:
            batch = self.scheduler.schedule()
            assert batch.tokens <= self.scheduler.batch_tokens
            decoding = {sequence for sequence in self.scheduler.running if sequence.generated}
            assert decoding <= {chunk.sequence for chunk in batch.chunks}, "a forced run stalled another reply"
            self.scheduler.commit(batch, sample(batch, self._forward(batch), masks(batch, VOCABULARY)))
            self.count += 1

    def _forward(self, batch: Batch) -> Tensor:
        rows: list[Tensor] = []
        for chunk, text in self.cells.texts(batch):
            ids = [cell.id for cell in text]
            rows += [row(ids[: chunk.end - chunk.rows + 1 + place]) for place in range(chunk.rows)]
        self.rows += len(rows)
        return torch.stack(rows) if rows else torch.empty(0, VOCABULARY)


def random_prompt(generator: random.Random) -> tuple[int, ...]:
    """RUN may occur in it, followed by ids that the grammar does not allow there."""
    prompt = [generator.randrange(12) for _ in range(generator.randint(1, 20))]
    return tuple(prompt + generator.choice((0, 1, 2)) * [*RUN, 8, generator.randrange(12), 3, 3])


def samplings(generator: random.Random) -> Sampling:
    return Sampling(
        temperature=generator.choice((0.0, 0.8, 1.5)),
        top_p=generator.choice((1.0, 0.7)),
        repetition_penalty=generator.choice((1.0, 1.3)),
        seed=generator.randrange(1 << 30),
        max_tokens=generator.randint(1, 50),
        logprobs=generator.choice((None, None, 2)),
        stop_ids=frozenset({STOP}),
        constraint=Lines(generator.randint(1, 7)),
    )


@pytest.mark.parametrize("guessing", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_replies_are_those_of_a_plain_loop(seed: int, guessing: bool) -> None:
    generator = random.Random(seed)
    slots = generator.randint(1, 6)
    sequences = [Sequence("s", random_prompt(generator), samplings(generator)) for _ in range(10)]
    scheduler = Scheduler(
        slots=slots,
        context=128,
        batch_tokens=slots + generator.randint(0, 30),
        max_waiting=99,
        look_up=PromptLookup() if guessing else None,
    )
    scheduler.add(*sequences)
    Passes(scheduler).run()
    for sequence in sequences:
        reply = plain(sequence.sampling, sequence.prompt)
        assert sequence.tokens[len(sequence.prompt) :] == reply
        ended = reply[-1] == STOP or len(reply) == 6 * sequence.sampling.constraint.count  # type: ignore[union-attr]
        assert sequence.finish == ("stop" if ended else "length")
        assert sequence.complete == (ended and reply[-1] != STOP)


@pytest.mark.parametrize(("logprobs", "passes"), [(None, 6), (1, 18)])
def test_forced_ids_take_no_pass_of_their_own(logprobs: int | None, passes: int) -> None:
    """Three lines of six ids, four of which are forced; with logprobs each id has a row."""
    sampling = Sampling(temperature=0, max_tokens=50, constraint=Lines(3), logprobs=logprobs)
    scheduler = Scheduler(slots=1, context=128, batch_tokens=64, max_waiting=9)
    scheduler.add(Sequence("s", (1, 2), sampling))
    ran = Passes(scheduler)
    ran.run()
    assert (ran.count, ran.rows) == (passes, passes)


async def collect(stream: Stream) -> list[Token]:
    return [token async for token in stream]


def test_the_stream_has_forced_ids_in_order_and_max_tokens_cuts_among_them() -> None:
    async def main() -> None:
        engine = Engine(ScriptRunner([3], VOCABULARY), slots=2, context=64, batch_tokens=16)
        engine.start()
        try:
            for most, expected in ((9, [3, *RUN, 6]), (3, [3, *RUN[:2]])):
                sampling = Sampling(temperature=0, max_tokens=most, constraint=Lines(1))
                tokens = await collect(engine.submit([1], sampling, skill="s"))
                assert [token.id for token in tokens] == expected
                assert tokens[-1].finish == ("stop" if most == 9 else "length")
                assert tokens[-1].complete == (most == 9)
                assert not any(token.finish for token in tokens[:-1])
        finally:
            engine.stop()

    asyncio.run(main())


class Failing(Lines):
    def begin(self) -> LinesState:
        state = super().begin()
        state.fail("it is too complex")
        return state


class Foreign(Lines):
    """Allows only ids that the model does not have."""

    def begin(self) -> LinesState:
        state = super().begin()
        state.masks = lambda guess: [bits([VOCABULARY + 1])] * (len(guess) + 1)  # type: ignore[method-assign]
        return state


@pytest.mark.parametrize(("constraint", "why"), [(Failing(1), "too complex"), (Foreign(1), "vocabulary")])
def test_a_grammar_that_fails_ends_its_own_reply_only(constraint: Lines, why: str) -> None:
    async def main() -> None:
        engine = Engine(ScriptRunner([3], VOCABULARY), slots=2, context=64, batch_tokens=16)
        engine.start()
        try:
            failing = engine.submit([1], Sampling(temperature=0, max_tokens=9, constraint=constraint), skill="s")
            other = engine.submit([1], Sampling(temperature=0, max_tokens=5), skill="s")
            with pytest.raises(InvalidRequest, match=why):
                await collect(failing)
            assert [token.id for token in await collect(other)] == [3] * 5
            assert engine.failure is None
        finally:
            engine.stop()

    asyncio.run(main())
