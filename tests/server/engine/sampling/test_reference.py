"""Sampling against the definition done slowly in plain Python, and against frequencies."""

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from transformers import RepetitionPenaltyLogitsProcessor

from server.engine.batch import Batch, Chunk
from server.engine.sampling.constraint import Mask
from server.engine.sampling.reference import _adjusted, draw, sample
from server.engine.sequence import RequestedSampling, Sampling, Sequence
from server.errors import EngineFailed


def asked(temperature: float, top_p: float, seed: int | None, **more: Any) -> Sequence:
    return Sequence("", (1,), Sampling(temperature=temperature, top_p=top_p, seed=seed, **more))


def slow_nucleus(logits: list[float], temperature: float, top_p: float) -> dict[int, float]:
    """Temperature, softmax, and the fewest most likely ids whose mass reaches top_p; probabilities by id."""
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    probabilities = [weight / math.fsum(weights) for weight in weights]
    kept: dict[int, float] = {}
    for id in sorted(range(len(logits)), key=lambda id: (-probabilities[id], id)):
        kept[id] = probabilities[id]
        if math.fsum(kept.values()) >= top_p:
            break
    return {id: probability / math.fsum(kept.values()) for id, probability in kept.items()}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 9, 300, 700]),
    temperature=st.floats(0.05, 3),
    top_p=st.floats(0.01, 1),
)
def test_every_draw_lies_in_the_nucleus_and_follows_its_uniform(
    seed: int, size: int, temperature: float, top_p: float
) -> None:
    generator = random.Random(seed)
    logits = [round(generator.gauss(0, 2), 1) for _ in range(size)]  # rounded, so that there are ties
    row = torch.tensor(logits)
    nucleus = slow_nucleus(row.tolist(), temperature, top_p)
    ids = sorted(nucleus) if top_p == 1 else list(nucleus)
    for number in range(5):
        sequence = asked(temperature, top_p, number)
        uniform = random.Random(f"{number}/0").random()
        sums = [math.fsum(nucleus[id] for id in ids[: end + 1]) for end in range(len(ids))]
        if min(abs(uniform - value) for value in sums) > 1e-6 and abs(math.fsum(nucleus.values()) - 1) < 1e-9:
            expected = next(id for id, value in zip(ids, sums, strict=True) if uniform < value)
            assert draw(row, sequence) == expected


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_frequencies_are_the_probabilities(top_p: float) -> None:
    logits = [2.0, 1.0, 0.5, 0.0, -1.0]
    expected = slow_nucleus(logits, 0.8, top_p)
    count = 4000
    drawn = Counter(draw(torch.tensor(logits), asked(0.8, top_p, seed)) for seed in range(count))
    assert set(drawn) == set(expected)
    for id, probability in expected.items():
        deviation = math.sqrt(probability * (1 - probability) / count)
        assert abs(drawn[id] / count - probability) < 4.5 * deviation


def test_temperature_zero_is_the_most_likely_id_and_a_tiny_one_does_not_overflow() -> None:
    logits = torch.tensor([1.0, 300.0, 299.9, -4.0])
    assert draw(logits, asked(0, 0.5, 1)) == 1
    assert draw(logits, asked(1e-9, 1.0, 1)) == 1


def test_a_seed_gives_the_same_ids_whatever_else_is_in_the_batch() -> None:
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    sequences = [asked(1.0, 0.9, seed) for seed in (7, None, 8)]

    def batch(chosen: list[int]) -> Batch:
        return Batch(tuple(Chunk(sequences[i], i, 0, (1,), True) for i in chosen))

    alone = [sample(batch([i]), rows[i : i + 1])[0] for i in (0, 2)]
    together = sample(batch([2, 1, 0]), rows[[2, 1, 0]])
    assert [together[2], together[0]] == alone


def test_successive_tokens_of_a_sequence_are_drawn_independently() -> None:
    sequence = asked(1.0, 1.0, 5)
    drawn = []
    for _ in range(200):
        drawn.append(draw(torch.zeros(2), sequence))
        sequence.append(drawn[-1])
    assert 60 < sum(drawn) < 140


def test_without_a_seed_replies_differ() -> None:
    assert len({draw(torch.zeros(1000), asked(1.0, 1.0, None)) for _ in range(10)}) > 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_logits_are_an_error(bad: float) -> None:
    logits = torch.zeros(2, 9)
    logits[1, 3] = bad
    chunks = tuple(Chunk(asked(0, 1, 1), slot, 0, (1,), True) for slot in range(2))
    with pytest.raises(EngineFailed, match="NaN or infinite"):
        sample(Batch(chunks), logits)


def test_ids_forbidden_by_minus_infinity_are_never_drawn() -> None:
    logits = torch.full((10,), float("-inf"))
    logits[4] = logits[6] = 0.0
    assert {draw(logits, asked(1.0, 1.0, seed)) for seed in range(50)} == {4, 6}
    assert {draw(logits, asked(1.0, 0.9, seed)) for seed in range(50)} == {4, 6}


def slow_allowed(logits: list[float], temperature: float, top_k: int, min_p: float, top_p: float) -> set[int]:
    """The ids that may be drawn, by the definitions in turn."""
    weights = {id: math.exp((logit - max(logits)) / temperature) for id, logit in enumerate(logits)}
    kept = {id for id, weight in weights.items() if weight >= min_p * (1 - 1e-9)}
    if top_k:
        kept = set(sorted(kept, key=lambda id: (-logits[id], id))[:top_k])
    places = sorted(kept)
    nucleus = slow_nucleus([logits[id] for id in places], temperature, top_p)
    return {places[place] for place in nucleus}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 9, 40]),
    top_k=st.sampled_from([0, 1, 3, 8, 100]),
    min_p=st.sampled_from([0.0, 0.11, 0.52, 1.0]),
    top_p=st.sampled_from([0.33, 0.77, 1.0]),
)
def test_top_k_and_min_p_keep_what_their_definitions_say(
    seed: int, size: int, top_k: int, min_p: float, top_p: float
) -> None:
    generator = random.Random(seed)
    logits = [round(generator.gauss(0, 1), 1) for _ in range(size)]
    allowed = slow_allowed(logits, 0.8, top_k, min_p, top_p)
    drawn = {draw(torch.tensor(logits), asked(0.8, top_p, n, top_k=top_k, min_p=min_p)) for n in range(60)}
    assert drawn <= allowed
    assert (
        len(allowed) > 3
        or drawn == allowed
        or min(weight for id, weight in slow_nucleus(logits, 0.8, 1.0).items() if id in allowed) < 0.1
    )


def test_penalties_count_the_reply_and_not_the_prompt() -> None:
    sequence = asked(0, 1, None, frequency_penalty=0.5, presence_penalty=0.2)
    logits = torch.tensor([1.0, 1.05, 0.0])
    drawn = []
    for _ in range(6):
        drawn.append(draw(logits, sequence))
        sequence.append(drawn[-1])
    # 1.05 becomes 0.35 and then -0.15, 1.0 becomes 0.3 and then -0.2; the third, 0, comes between.
    assert drawn == [1, 0, 1, 0, 2, 1]
    assert logits.tolist() == torch.tensor([1.0, 1.05, 0.0]).tolist(), "the caller's logits were changed"


def bits(ids: Iterable[int]) -> Mask:
    """A mask of 64 ids that allows `ids`."""
    return numpy.array([sum(1 << id for id in ids)], numpy.int64).view(numpy.int32)


def test_a_bias_moves_an_id_and_a_mask_allows_nothing_else() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert draw(logits, asked(0, 1, 1, logit_bias=((3, 3.5),))) == 3
    assert {draw(logits, asked(5.0, 1, seed, logit_bias=((0, -100.0),))) for seed in range(60)} == {1, 2, 3}
    mask = torch.tensor([1, 3])
    assert draw(logits, asked(0, 1, 1), mask) == 1
    assert {draw(logits, asked(5.0, 0.99, seed, top_k=2), mask) for seed in range(60)} == {1, 3}
    batch = Batch(tuple(Chunk(asked(0, 1, 1), slot, 0, (1,), True) for slot in range(2)))
    assert sample(batch, logits.repeat(2, 1), [None, bits([1, 3, 40])]) == [0, 1]


@pytest.mark.parametrize("penalty", [0.5, 1.1, 1.3, 3.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(2)) * 5
    sequence = Sequence("", tuple(range(0, 90, 3)), Sampling(repetition_penalty=penalty))
    for id in (7, 9, 7, 499):
        sequence.append(id)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([sequence.tokens]), logits[None].clone())[0]
    assert torch.equal(_adjusted(logits, sequence), expected)
    assert not torch.equal(expected, logits)


def test_no_stop_token_is_drawn_before_min_tokens() -> None:
    logits = torch.tensor([9.0, 8.0, 1.0, 0.0])
    sequence = asked(0, 1, 1, min_tokens=2, stop_ids=frozenset({0, 1}), logit_bias=((0, 100.0),))
    drawn = []
    while sequence.finish is None:
        drawn.append(draw(logits, sequence))
        sequence.append(drawn[-1])
    assert drawn == [2, 2, 0]
    only_stops = torch.tensor([0, 1])  # a grammar that is complete ends the reply all the same
    assert draw(logits, asked(0, 1, 1, min_tokens=2, stop_ids=frozenset({0, 1})), only_stops) == 0


def test_stop_ids_of_a_request_join_the_models_own_unless_these_are_ignored() -> None:
    asked_for = RequestedSampling(stop_token_ids=(5,), min_tokens=9, max_tokens=4)
    sampling = Sampling.resolve(asked_for, frozenset({2}))
    assert sampling.stop_ids == {2, 5}
    assert sampling.min_tokens == 4
    assert Sampling.resolve(replace(asked_for, ignore_eos=True), frozenset({2})).stop_ids == {5}
