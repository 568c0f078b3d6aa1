"""Sampling against the definition done slowly in plain Python, and against frequencies."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.batch import Batch, Chunk
from server.engine.sampling import draw, sample
from server.engine.sequence import Sampling, Sequence
from server.errors import EngineFailed


def asked(temperature: float, top_p: float, seed: int | None) -> Sequence:
    return Sequence("", (1,), Sampling(temperature=temperature, top_p=top_p, seed=seed))


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
