"""Random traffic against a scheduler, with laws that hold at every step and a cache that knows its contents."""

import random
from collections import Counter
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from server.engine.batch import Batch
from server.engine.blocks import BLOCK, CacheSize
from server.engine.scheduling.scheduler import MOST_PROMPT_ROWS, Scheduler
from server.engine.sequence import Sampling, Sequence
from server.errors import ConfigError, Overloaded
from tests.support.fakes import Cell, Cells

STOP = 3


class Cache:
    """Stores the writer's skill, salt and id at each place, and computes the next id from the prefix it reads there."""

    def __init__(self) -> None:
        self.cells = Cells()
        self.computed: dict[Sequence, int] = {}
        self.scored: dict[Sequence, list[int]] = {}

    def forward(self, batch: Batch) -> list[int]:
        tokens = []
        assert len({chunk.slot for chunk in batch.chunks}) == len(batch.chunks)
        for chunk, prefix in self.cells.texts(batch):
            assert [cell.id for cell in prefix] == chunk.sequence.tokens[: chunk.end]
            check_privacy(chunk.sequence, prefix)
            self.computed[chunk.sequence] = self.computed.get(chunk.sequence, 0) + len(chunk.ids)
            self.scored.setdefault(chunk.sequence, []).extend(range(chunk.start, chunk.start + chunk.prompt_rows))
            if chunk.wants_logits:
                assert chunk.end == len(chunk.sequence.tokens)
                tokens.append(sum(cell.id for cell in prefix) % 13)
        return tokens


def check_privacy(sequence: Sequence, read: list[Cell]) -> None:
    """Every entry was written for the skill, and outside the full blocks of its own turns with the same salt.

    The skill's turns repeat the last letter of its name.
    """
    assert {cell.skill for cell in read} == {sequence.skill}
    turns = len(list(takewhile(lambda id: id == ord(sequence.skill[-1]), sequence.prompt)))
    own = read[turns - turns % BLOCK :]
    assert {cell.salt for cell in own} <= {sequence.cache_salt}, "another caller's keys and values were read"


def check_laws(scheduler: Scheduler, batch: Batch) -> None:
    used = [sequence.slot for sequence in scheduler.running if sequence.slot is not None]
    assert sorted(used + scheduler.free) == list(range(scheduler.slots + min(scheduler.slots // 2, spare(scheduler))))
    check_conservation(scheduler)
    assert batch.tokens <= scheduler.batch_tokens
    assert sum(chunk.prompt_rows for chunk in batch.chunks) <= MOST_PROMPT_ROWS
    for chunk in batch.chunks:
        leader = chunk.sequence.leader
        assert leader is None or leader.slot is None or leader.generated, "a prompt was computed twice"
    if scheduler.waiting and len(scheduler.running) < scheduler.slots:
        assert len(scheduler.blocks.free) < CacheSize(1, scheduler.context).per_sequence, "a slot was left empty"
    assert all(scheduler.waiting)
    decoding = {sequence for sequence in scheduler.running if sequence.generated}
    computed = {chunk.sequence for chunk in batch.chunks}
    queued = {request[0].skill for request in scheduler.waiting}
    for_quiet = queued and not any(one.generated or one.skill in queued for one in computed)
    assert decoding <= computed or for_quiet, "a long prompt stalled a reply"
    assert bool(batch.chunks) == bool(scheduler.running)


def spare(scheduler: Scheduler) -> int:
    """Rows of a pass beyond one for each slot."""
    return scheduler.batch_tokens - scheduler.slots


def check_conservation(scheduler: Scheduler) -> None:
    """Every block is held, pinned or free, and its holders are the running sequences that name it."""
    blocks = scheduler.blocks
    holders = Counter(block for sequence in scheduler.running for block in sequence.blocks)
    assert [holders[block] for block in range(len(blocks.holders))] == blocks.holders
    resting = set(blocks.pinned) - set(holders)
    assert not set(blocks.free) & (set(holders) | resting)
    assert len(blocks.free) + len(holders) + len(resting) == len(blocks.holders)
    assert len(blocks.pinned) <= CacheSize(scheduler.slots, scheduler.context).pinned


def random_request(generator: random.Random, context: int, skills: int) -> list[Sequence]:
    """One to four sequences of the same prompt, the first of which may have its prompt scored."""
    skill = f"skill {generator.randrange(skills)}"
    system = [ord(skill[-1])] * generator.choice((0, 5, BLOCK + 9, 3 * BLOCK))
    words = random.Random(generator.randrange(3))  # callers often say the same
    prompt = system + [words.randrange(2) for _ in range(generator.randint(1, context // 2))]
    prompt = prompt[: context - 1]
    most = generator.randint(0, min(12, context - len(prompt)))
    sampling = Sampling(max_tokens=most, stop_ids=frozenset({STOP}))
    caching: Any = {
        "shared_prefix": len(system),
        "cache_salt": generator.choice(("", "one caller", "another caller")),
    }
    scored = replace(sampling, prompt_logprobs=generator.choice((None, None, 1)))
    leader = Sequence(skill, tuple(prompt), scored, **caching)
    others = range(generator.choice((0, 0, 1, 3)))
    return [leader, *(Sequence(skill, leader.prompt, sampling, leader=leader, **caching) for _ in others)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 5),
    spare=st.integers(0, 20),
    context=st.integers(2, 6 * BLOCK),
    max_waiting=st.integers(1, 6),
)
def test_random_traffic_keeps_the_laws(seed: int, slots: int, spare: int, context: int, max_waiting: int) -> None:
    generator = random.Random(seed)
    scheduler = Scheduler(slots=slots, context=context, batch_tokens=slots + spare, max_waiting=max_waiting)
    cache = Cache()
    accepted: list[Sequence] = []
    aborted: set[Sequence] = set()
    finished: list[Sequence] = []
    arrivals = 40
    for _ in range(40 * context * 20):
        while arrivals and generator.random() < 0.3:
            arrivals -= 1
            accepted += arrive(scheduler, random_request(generator, context, skills=3), max_waiting)
        batch = scheduler.schedule()
        check_laws(scheduler, batch)
        tokens = cache.forward(batch)
        if accepted and generator.random() < 0.05:  # between schedule and commit, as from another thread
            victim = generator.choice(accepted)
            if not victim.finish:
                aborted.add(victim)
            scheduler.abort(victim)
            assert victim.slot is None
            assert victim not in scheduler.running
            assert not any(victim in request for request in scheduler.waiting)
        running = {sequence for sequence in batch.sampled if sequence not in aborted}
        expected = {one: min(one.generated + 1, one.sampling.max_tokens) for one in running}
        scheduler.commit(batch, tokens)
        assert all(sequence.generated == count for sequence, count in expected.items())
        finished += [sequence for sequence in running if sequence.finish]
        if not arrivals and scheduler.idle:
            break
    assert scheduler.idle, "a sequence starved"
    check_conservation(scheduler)
    assert not any(scheduler.blocks.holders)
    assert len(finished) == len(set(finished))
    assert set(finished) | aborted == set(accepted)
    assert not set(finished) & aborted
    for sequence in finished:
        check_finished(sequence, cache)


def arrive(scheduler: Scheduler, request: list[Sequence], max_waiting: int) -> list[Sequence]:
    """Add the request if its skill's queue has room; returns its sequences if so."""
    waiting = sum(other[0].skill == request[0].skill for other in scheduler.waiting)
    if waiting < max_waiting + max(scheduler.slots - len(scheduler.running), 0):
        scheduler.add(*request)
        return request
    before = list(scheduler.waiting)
    with pytest.raises(Overloaded):
        scheduler.add(*request)
    assert list(scheduler.waiting) == before
    return []


def check_finished(sequence: Sequence, cache: Cache) -> None:
    assert cache.computed[sequence] == len(sequence.prompt) - sequence.cached + max(0, sequence.generated - 1)
    scored = range(len(sequence.prompt) - 1 if sequence.scores_prompt else 0)
    assert cache.scored[sequence] == list(scored), "an id of the prompt was scored twice or not at all"
    assert sequence.finish == ("stop" if sequence.generated and sequence.tokens[-1] == STOP else "length")
    assert STOP not in sequence.tokens[len(sequence.prompt) : -1]
    assert sequence.generated <= sequence.sampling.max_tokens
    assert sequence.finish == "stop" or sequence.generated == sequence.sampling.max_tokens
    assert sequence.cached < len(sequence.prompt)


def run(scheduler: Scheduler, cache: Cache) -> list[Batch]:
    batches = []
    while not scheduler.idle:
        batches.append(scheduler.schedule())
        scheduler.commit(batches[-1], cache.forward(batches[-1]))
    return batches


def ask(skill: str, prompt: list[int], max_tokens: int = 1, **caching: Any) -> Sequence:
    return Sequence(skill, tuple(prompt), Sampling(max_tokens=max_tokens), **caching)


def test_admission_is_first_in_first_out() -> None:
    scheduler = Scheduler(slots=2, context=20, batch_tokens=4, max_waiting=50)
    sequences = [ask("a", [1] * (1 + index % 7)) for index in range(20)]
    for sequence in sequences:
        scheduler.add(sequence)
    first_seen = list(dict.fromkeys(chunk.sequence for batch in run(scheduler, Cache()) for chunk in batch.chunks))
    assert first_seen == sequences


def test_a_request_of_many_choices_takes_turns_with_later_ones() -> None:
    scheduler = Scheduler(slots=1, context=20, batch_tokens=4, max_waiting=5)
    many = [ask("a", [number]) for number in range(4)]
    later = [ask("a", [number]) for number in (7, 8)]
    scheduler.add(*many)
    for sequence in later:
        scheduler.add(sequence)
    first_seen = dict.fromkeys(chunk.sequence for batch in run(scheduler, Cache()) for chunk in batch.chunks)
    assert list(first_seen) == [many[0], *later, *many[1:]]


def test_a_long_prompt_is_computed_in_chunks_beside_a_reply() -> None:
    scheduler = Scheduler(slots=2, context=200, batch_tokens=8, max_waiting=5)
    cache = Cache()
    reply, long = ask("a", [1], max_tokens=40), ask("a", [2] * 100)
    scheduler.add(reply)
    first = scheduler.schedule()
    scheduler.commit(first, cache.forward(first))
    scheduler.add(long)
    batches = [batch for batch in run(scheduler, cache) if long in {chunk.sequence for chunk in batch.chunks}]
    assert [len(batch.chunks[-1].ids) for batch in batches] == [7] * 14 + [2]
    assert all(batch.chunks[0].sequence is reply for batch in batches)


LONG = list(range(100, 100 + 3 * BLOCK))


@pytest.mark.parametrize(
    ("skill", "prompt", "cached"),
    [
        ("a", [*LONG, 1], 3 * BLOCK),
        ("a", LONG, 2 * BLOCK),  # the last id is always computed, for its logits
        ("a", [*LONG[: BLOCK + 5], 9, 9], BLOCK),  # only full blocks are shared
        ("a", [9, *LONG], 0),
        ("b", [*LONG, 1], 0),
    ],
)
def test_a_prefix_is_reused_within_a_skill_only(skill: str, prompt: list[int], cached: int) -> None:
    scheduler, cache = Scheduler(slots=1, context=200, batch_tokens=64, max_waiting=5), Cache()
    scheduler.add(ask("a", LONG))
    run(scheduler, cache)
    second = ask(skill, prompt)
    scheduler.add(second)
    run(scheduler, cache)
    assert second.cached == cached


@pytest.mark.parametrize(
    ("shared", "salt", "cached"),
    [
        (0, "one caller", 3 * BLOCK),
        (0, "another caller", 0),
        (BLOCK - 1, "another caller", 0),
        (BLOCK, "another caller", BLOCK),
        (2 * BLOCK + 5, "one caller", 3 * BLOCK),
        (2 * BLOCK + 5, "another caller", 2 * BLOCK),  # a block with an id of the caller is the caller's
        (3 * BLOCK, "another caller", 3 * BLOCK),
        (3 * BLOCK, "", 3 * BLOCK),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_callers_share_whole_blocks_of_the_shared_prefix_only(
    shared: int, salt: str, cached: int, together: bool
) -> None:
    scheduler, cache = Scheduler(slots=2, context=200, batch_tokens=BLOCK, max_waiting=5), Cache()
    first = ask("d", [100] * (3 * BLOCK) + [1], shared_prefix=shared, cache_salt="one caller")
    second = ask("d", [100] * (3 * BLOCK) + [2], shared_prefix=shared, cache_salt=salt)
    scheduler.add(first)
    if not together:
        run(scheduler, cache)
    scheduler.add(second)
    run(scheduler, cache)
    assert (first.cached, second.cached) == (0, cached)


def test_a_reply_is_reused_as_the_beginning_of_the_next_prompt() -> None:
    scheduler, cache = Scheduler(slots=1, context=200, batch_tokens=64, max_waiting=5), Cache()
    first = ask("a", LONG[:BLOCK], max_tokens=BLOCK + 1)
    scheduler.add(first)
    run(scheduler, cache)
    second = ask("a", [*first.tokens, 5])
    scheduler.add(second)
    run(scheduler, cache)
    assert second.cached == 2 * BLOCK


def test_streams_of_a_skill_share_its_prompt_while_they_run() -> None:
    scheduler, cache = Scheduler(slots=4, context=200, batch_tokens=4 + BLOCK, max_waiting=5), Cache()
    sequences = [ask("a", [*LONG, index], max_tokens=30) for index in range(4)]
    for sequence in sequences:  # at once: the others reuse what the first has computed meanwhile
        scheduler.add(sequence)
    while not all(sequence.generated for sequence in sequences):
        batch = scheduler.schedule()
        scheduler.commit(batch, cache.forward(batch))
        check_conservation(scheduler)
    assert len({tuple(sequence.blocks[:3]) for sequence in sequences}) == 1
    assert scheduler.blocks.holders[sequences[0].blocks[0]] == 4
    assert sum(cache.computed[sequence] for sequence in sequences) < 3 * BLOCK + 50
    run(scheduler, cache)
    assert not any(scheduler.blocks.holders)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_choices_of_one_prompt_compute_it_once_but_for_its_last_block(slots: int) -> None:
    scheduler, cache = Scheduler(slots=slots, context=200, batch_tokens=512, max_waiting=0), Cache()
    leader = ask("a", [*LONG, 1, 2], max_tokens=3, cache_salt="caller")
    others = [ask("a", [*LONG, 1, 2], max_tokens=3, cache_salt="caller", leader=leader) for _ in range(4)]
    scheduler.add(leader, *others)
    run(scheduler, cache)
    assert [one.cached for one in (leader, *others)] == [0, *[len(LONG)] * 4]
    assert {tuple(one.tokens) for one in others} == {tuple(leader.tokens)}


def test_choices_go_on_when_the_first_is_aborted() -> None:
    scheduler, cache = Scheduler(slots=2, context=200, batch_tokens=BLOCK, max_waiting=5), Cache()
    leader = ask("a", LONG, max_tokens=3)
    other = ask("a", LONG, max_tokens=3, leader=leader)
    scheduler.add(leader, other)
    batch = scheduler.schedule()
    scheduler.commit(batch, cache.forward(batch))
    scheduler.abort(leader)
    run(scheduler, cache)
    assert (other.finish, other.cached) == ("length", BLOCK)


def test_a_scored_prompt_is_computed_whole() -> None:
    scheduler, cache = Scheduler(slots=1, context=200, batch_tokens=512, max_waiting=5), Cache()
    for scored in (None, 0, None):
        one = Sequence("a", (*LONG, 1), Sampling(max_tokens=0, prompt_logprobs=scored))
        scheduler.add(one)
        run(scheduler, cache)
        assert one.finish == "length"
        assert len(cache.scored[one]) == (0 if scored is None else len(LONG))
        assert scored is None or one.cached == 0
    assert one.cached == len(LONG)


def test_a_shared_prefix_stays_in_the_cache() -> None:
    scheduler, cache = Scheduler(slots=1, context=200, batch_tokens=64, max_waiting=50), Cache()
    scheduler.add(Sequence("a", (*LONG, 1), Sampling(max_tokens=1), shared_prefix=3 * BLOCK))
    run(scheduler, cache)
    for start in range(20):  # far more than the cache holds
        scheduler.add(ask("b", [start] * 190))
        run(scheduler, cache)
    second = ask("a", [*LONG, 2], shared_prefix=3 * BLOCK)
    scheduler.add(second)
    run(scheduler, cache)
    assert second.cached == 3 * BLOCK


def test_a_callers_own_blocks_are_evicted() -> None:
    scheduler, cache = Scheduler(slots=1, context=200, batch_tokens=64, max_waiting=50), Cache()
    scheduler.add(ask("a", [*LONG, 1], shared_prefix=2 * BLOCK))
    run(scheduler, cache)
    assert len(scheduler.blocks.pinned) == 2
    for start in range(20):
        scheduler.add(ask("b", [start] * 190))
        run(scheduler, cache)
    second = ask("a", [*LONG, 2], shared_prefix=2 * BLOCK)
    scheduler.add(second)
    run(scheduler, cache)
    assert second.cached == 2 * BLOCK


def test_pinned_blocks_are_limited() -> None:
    scheduler, cache = Scheduler(slots=1, context=100, batch_tokens=64, max_waiting=50), Cache()
    for skill in range(5):
        scheduler.add(Sequence(f"skill {skill}", tuple(LONG[:90]), Sampling(max_tokens=1), shared_prefix=90))
        run(scheduler, cache)
        check_conservation(scheduler)
    assert len(scheduler.blocks.pinned) == 4


def test_uncommitted_blocks_of_an_aborted_sequence_are_not_reused() -> None:
    scheduler, cache = Scheduler(slots=1, context=200, batch_tokens=BLOCK, max_waiting=5), Cache()
    first = ask("a", LONG)
    scheduler.add(first)
    batch = scheduler.schedule()
    scheduler.commit(batch, cache.forward(batch))
    batch = scheduler.schedule()
    scheduler.abort(first)
    scheduler.commit(batch, [])
    second = ask("a", LONG)
    scheduler.add(second)
    run(scheduler, cache)
    assert second.cached == BLOCK


@pytest.mark.parametrize(("slots", "batch_tokens"), [(0, 5), (4, 3)])
def test_settings_that_would_starve_a_sequence_are_refused(slots: int, batch_tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"slots is {slots} and batch_tokens is {batch_tokens}"):
        Scheduler(slots=slots, context=20, batch_tokens=batch_tokens, max_waiting=5)
