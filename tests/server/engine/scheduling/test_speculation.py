"""Guesses never change a reply: its ids, its end, what is counted, or what the prefix cache keeps."""

import asyncio
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.engine.batch import Batch
from server.engine.blocks import BLOCK
from server.engine.engine import Engine
from server.engine.sampling.prompt import sampled_rows
from server.engine.sampling.reference import sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.scheduling.speculation import FIRST, LONGEST, MOST_ROWS, MOST_SEQUENCES, PromptLookup, choose_look_up
from server.engine.sequence import Sampling, Sequence
from server.errors import ConfigError
from tests.support.fakes import Cells, FakeRunner

VOCABULARY = 12
STOP = 11


class Cache:
    """A model over a cache: each row's logits are a function of the ids that lie in the blocks up to its position."""

    def __init__(self, period: int) -> None:
        self.cells = Cells()
        self.period = period
        self.passes = 0
        self.most_rows = 0

    def forward(self, batch: Batch) -> Tensor:
        self.passes += 1
        self.most_rows = max(self.most_rows, batch.tokens)
        rows: list[Tensor] = []
        for chunk, text in self.cells.texts(batch):
            assert {cell.skill for cell in text} == {chunk.sequence.skill}
            assert set(chunk.ids) <= set(chunk.sequence.tokens), "a guess is not from the sequence's own text"
            own = len(text) - chunk.guesses
            ids = [cell.id for cell in text]
            rows += [self.row(ids[: chunk.start + 1 + row]) for row in range(chunk.prompt_rows)]
            assert [cell.id for cell in text[:own]] == chunk.sequence.tokens[:own], "a foreign or rejected id was read"
            rows += [self.row(ids[: chunk.end - chunk.rows + 1 + row]) for row in range(chunk.rows)]
        return torch.stack(rows) if rows else torch.empty(0, VOCABULARY)

    def row(self, text: list[int]) -> Tensor:
        """Mostly the id one period before, so that texts repeat themselves."""
        generator = random.Random(repr(text[-9:]))
        logits = torch.tensor([generator.gauss(0, 1) for _ in range(VOCABULARY)])
        if len(text) >= self.period and text[-self.period] != STOP:
            logits[text[-self.period]] += 4
        return logits


def serve(
    sequences: list[Sequence], cache: Cache, look_up: PromptLookup | None, *, slots: int = 3, spare: int = 40
) -> None:
    scheduler = Scheduler(slots=slots, context=200, batch_tokens=slots + spare, max_waiting=99, look_up=look_up)
    for sequence in sequences:
        scheduler.add(sequence)
    while not scheduler.idle:
        batch = scheduler.schedule()
        assert batch.tokens <= scheduler.batch_tokens
        before = {sequence: sequence.generated for sequence in scheduler.running}
        accepted = scheduler.commit(batch, sample(batch, sampled_rows(batch, cache.forward(batch))))
        for sequence, generated in before.items():
            assert sequence.generated - generated == sum(one.sequence is sequence for one in accepted)
        for one in accepted:
            assert not one.finish or one is [other for other in accepted if other.sequence is one.sequence][-1]
    assert not any(scheduler.blocks.holders)


def random_sequences(generator: random.Random, count: int) -> list[Sequence]:
    made = []
    for number in range(count):
        skill = f"skill {generator.randrange(2)}"
        prompt = [ord(skill[-1]) % 7] * generator.choice((0, BLOCK, 2 * BLOCK + 3))
        prompt += [generator.randrange(10) for _ in range(generator.randint(1, 30))]
        sampling = Sampling(
            temperature=generator.choice((0.0, 0.0, 0.7, 1.5)),
            top_p=generator.choice((1.0, 0.8)),
            top_k=generator.choice((0, 3)),
            frequency_penalty=generator.choice((0.0, 0.0, 0.3)),
            presence_penalty=generator.choice((0.0, 0.0, 0.3)),
            repetition_penalty=generator.choice((1.0, 1.0, 1.2, 0.9)),
            min_tokens=generator.choice((0, 0, 9)),
            prompt_logprobs=generator.choice((None, None, 1)),
            seed=number,
            max_tokens=generator.randint(1, 60),
            stop_ids=generator.choice((frozenset(), frozenset({STOP}))),
        )
        made.append(Sequence(skill, tuple(prompt), sampling))
    return made


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32), period=st.integers(1, 12), slots=st.integers(1, 5), spare=st.sampled_from([0, 2, 9, 60])
)
def test_replies_are_the_same_with_and_without_guesses(seed: int, period: int, slots: int, spare: int) -> None:
    plain, ahead = (random_sequences(random.Random(seed), 8) for _ in range(2))
    serve(plain, Cache(period), None, slots=slots, spare=spare)
    serve(ahead, Cache(period), PromptLookup(), slots=slots, spare=spare)
    for one, other in zip(plain, ahead, strict=True):
        assert (one.tokens, one.finish) == (other.tokens, other.finish)
        assert len(one.tokens) <= len(one.prompt) + one.sampling.max_tokens
        assert not set(one.tokens[len(one.prompt) : -1]) & one.sampling.stop_ids
        assert one.finish != "stop" or one.generated > one.sampling.min_tokens


def test_a_text_that_repeats_itself_takes_far_fewer_passes() -> None:
    def ask(prompt: list[int]) -> list[Sequence]:
        return [Sequence("a", tuple(prompt), Sampling(temperature=0, max_tokens=96))]

    passes = []
    for look_up in (None, PromptLookup()):
        cache = Cache(period=10)
        serve(ask(list(range(10)) * 3), cache, look_up)
        passes.append(cache.passes)
    assert passes[0] >= 96
    assert passes[1] < 48


def test_guesses_grow_while_right_and_pause_when_wrong() -> None:
    look_up, sequence = PromptLookup(), Sequence("a", (*range(20), *range(20), *range(4)), Sampling(max_tokens=99))
    first = look_up.guess(sequence, 99)
    assert first == tuple(range(4, 4 + FIRST))
    look_up.record(sequence, FIRST, FIRST)
    assert look_up.guess(sequence, 99) == tuple(range(4, 4 + 2 * FIRST))
    assert look_up.guess(sequence, 2) == (4, 5)
    for _ in range(5):
        look_up.record(sequence, FIRST, FIRST)
    assert len(look_up.guess(sequence, 99)) == LONGEST
    pauses = []
    for _ in range(4):
        look_up.record(sequence, FIRST, 0)
        start = sequence.generated
        while not look_up.guess(sequence, 99):
            sequence.append((sequence.tokens[-1] + 1) % 20)
        pauses.append(sequence.generated - start)
    assert pauses == [1, 2, 4, 8]


def test_a_loop_at_the_end_of_the_text_is_continued() -> None:
    sequence = Sequence("a", (7, 8, 1, 2, 1, 2, 1, 2, 1, 2), Sampling(max_tokens=99))
    assert PromptLookup().guess(sequence, 99) == (1, 2, 1)


def test_no_guess_goes_beyond_max_tokens() -> None:
    sequence = Sequence("a", (*range(10), *range(4)), Sampling(max_tokens=3))
    assert PromptLookup().guess(sequence, 99) == (4, 5)
    sequence.append(4)
    sequence.append(5)
    assert PromptLookup().guess(sequence, 99) == ()


def guesses_among(slots: int, batch_tokens: int) -> list[int]:
    """Guessed ids of each of `slots` repetitive replies in a decode pass."""
    scheduler = Scheduler(slots=slots, context=400, batch_tokens=batch_tokens, max_waiting=99, look_up=PromptLookup())
    for number in range(slots):
        scheduler.add(Sequence("a", (*range(9), *range(9), number), Sampling(temperature=0, max_tokens=99)))
    while not all(sequence.generated for sequence in scheduler.running) or scheduler.waiting:
        batch = scheduler.schedule()
        scheduler.commit(batch, [(row.tokens[-1] + 1) % 9 for row in batch.sampled])
    for _ in range(6):
        batch = scheduler.schedule()
        scheduler.commit(batch, [(row.tokens[-1] + 1) % 9 for row in batch.sampled])
    assert batch.tokens <= min(batch_tokens, max(MOST_ROWS, slots))
    return [chunk.guesses for chunk in batch.chunks]


def test_guesses_share_the_rows_of_a_pass_and_stop_among_many_replies() -> None:
    assert guesses_among(1, 500) == [LONGEST]
    assert MOST_SEQUENCES < sum(guesses_among(MOST_SEQUENCES, 500)) <= MOST_ROWS - MOST_SEQUENCES
    assert sum(guesses_among(MOST_SEQUENCES, MOST_SEQUENCES + 2)) == 2
    assert guesses_among(MOST_SEQUENCES + 1, 500) == [0] * (MOST_SEQUENCES + 1)


def test_a_prompt_is_not_delayed_by_guesses() -> None:
    scheduler = Scheduler(slots=2, context=400, batch_tokens=20, max_waiting=9, look_up=PromptLookup())
    reply, prompt = (Sequence("a", (*range(9), *range(9), n), Sampling(temperature=0)) for n in (0, 1))
    scheduler.add(reply)
    scheduler.commit(scheduler.schedule(), [1])
    scheduler.add(prompt)
    batch = scheduler.schedule()
    assert [(chunk.guesses, len(chunk.ids)) for chunk in batch.chunks] == [(0, 1), (0, 19)]


class Repeats(FakeRunner):
    """Repeats the prompt."""

    def reply(self, sequence: Sequence) -> int:
        return sequence.prompt[sequence.generated % len(sequence.prompt)]


@pytest.mark.parametrize(("max_tokens", "stop", "finish"), [(37, 99, "length"), (64, 8, "stop")])
def test_a_stream_ends_in_the_middle_of_right_guesses(max_tokens: int, stop: int, finish: str) -> None:
    """So does a reply that a stop id ends."""

    async def main() -> None:
        runner = Repeats(vocabulary=10)
        engine = Engine(runner, slots=2, context=128, batch_tokens=64, look_up=PromptLookup())
        engine.start()
        prompt = [1, 2, 3, 4, 5, 6, 7] * 4 + [8, 9]
        sampling = Sampling(temperature=0, max_tokens=max_tokens, stop_ids=frozenset({stop}))
        stream = engine.submit(prompt, sampling, skill="a")
        tokens = [token async for token in stream]
        engine.stop()
        expected = (prompt * 9)[:max_tokens]
        expected = expected[: expected.index(8) + 1] if finish == "stop" else expected
        assert [token.id for token in tokens] == expected
        assert [token.finish for token in tokens] == [None] * (len(expected) - 1) + [finish]
        assert stream.sampled == len(expected)
        assert runner.steps < len(expected) // 2

    asyncio.run(main())


def test_an_abort_between_passes_leaves_nothing_behind() -> None:
    scheduler = Scheduler(slots=1, context=200, batch_tokens=64, max_waiting=9, look_up=PromptLookup())
    cache = Cache(period=5)
    sequence = Sequence("a", tuple(range(5)) * 4, Sampling(temperature=0, max_tokens=50))
    scheduler.add(sequence)
    for _ in range(4):
        batch = scheduler.schedule()
        tokens = sample(batch, cache.forward(batch))
        if batch.chunks[0].guesses:
            scheduler.abort(sequence)
            assert scheduler.commit(batch, tokens) == []
            break
        scheduler.commit(batch, tokens)
    assert batch.chunks[0].guesses
    assert scheduler.idle
    assert not any(scheduler.blocks.holders)


def test_wrong_guesses_are_never_reused() -> None:
    """Replies become the next prompts; the cache asserts that reused blocks hold their ids."""
    scheduler = Scheduler(slots=2, context=600, batch_tokens=64, max_waiting=99, look_up=PromptLookup())
    cache = Cache(period=5)
    texts = [tuple(range(5)) * 5 + (number,) for number in range(4)]
    for round in range(3):
        sampling = Sampling(temperature=1.5, seed=round, max_tokens=90)
        sequences = [Sequence("a", text, sampling) for text in texts]
        for sequence in sequences:
            scheduler.add(sequence)
        while not scheduler.idle:
            batch = scheduler.schedule()
            scheduler.commit(batch, sample(batch, cache.forward(batch)))
        assert not round or all(sequence.cached >= (round * 90 + 10) // BLOCK * BLOCK for sequence in sequences)
        texts = [(*sequence.tokens, 1) for sequence in sequences]


def test_the_choice_says_why() -> None:
    assert choose_look_up("auto", True)[1].value == "on"
    look_up, choice = choose_look_up("auto", False)
    assert look_up is None
    assert "replies would change" in choice.reason
    assert choose_look_up("off", True)[0] is None
    with pytest.raises(ConfigError, match='look_up is "on"'):
        choose_look_up("on", False)
