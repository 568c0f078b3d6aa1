"""Native sampling against the reference, id by id, and against frequencies."""

import math
from collections import Counter
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("server.engine.native._core")

from server.engine.batch import Batch, Chunk
from server.engine.native import core
from server.engine.sampling.constraint import Mask
from server.engine.sampling.sampler import NativeSampler, TorchSampler, choose_sampler
from server.engine.sequence import Sampling, Sequence
from server.errors import EngineFailed
from tests.server.engine.sampling.test_reference import bits, slow_nucleus

SETS = core().available()
SIZES = (1, 2, 7, 63, 64, 65, 257, 1000, 5000)


def batch_of(sequences: list[Sequence]) -> Batch:
    return Batch(tuple(Chunk(sequence, slot, 0, (1,), True) for slot, sequence in enumerate(sequences)))


def random_logits(rows: int, size: int, seed: int, digits: int | None, spread: float) -> Tensor:
    """Normal numbers, rounded to `digits` so that there are ties, some of them impossible."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, size, generator=generator) * spread
    if digits is not None:
        logits = (logits * 10**digits).round() / 10**digits
    impossible = torch.rand(rows, size, generator=generator) < 0.1
    impossible[:, seed % size] = False
    return logits.masked_fill(impossible, -math.inf)


@st.composite
def samplings(draw: Any) -> Sampling:
    return Sampling(
        temperature=draw(st.sampled_from([0.0, 1e-9, 0.05, 0.7, 1.0, 2.0, 1e3]) | st.floats(0.1, 3)),
        top_p=draw(st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1 - 1e-12, 1.0]) | st.floats(0.01, 1)),
        top_k=draw(st.sampled_from([0, 0, 1, 5, 40, 300, 4999, 10**9])),
        min_p=draw(st.sampled_from([0.0, 0.0, 1e-6, 0.05, 0.5, 1.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.5, -2.0])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 1.5, -0.3])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.7, 1.1])),
        min_tokens=draw(st.sampled_from([0, 0, 1, 10])),
        stop_ids=frozenset(draw(st.sampled_from([(), (0,)]))),
        logit_bias=draw(st.sampled_from([(), (), ((0, 3.3),), ((0, -100.0),)])),
        seed=draw(st.integers(0, 2**40)),
    )


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    wanted=st.lists(samplings(), min_size=1, max_size=4),
    size=st.sampled_from(SIZES),
    seed=st.integers(0, 2**32),
    digits=st.sampled_from([None, 0, 1]),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    masked=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_every_id_is_that_of_the_reference(
    wanted: list[Sampling], size: int, seed: int, digits: int | None, spread: float, masked: list[float]
) -> None:
    sequences = [Sequence("", (0,), sampling) for sampling in wanted]
    logits = random_logits(len(sequences), size, seed, digits, spread)
    untouched = logits.clone()
    masks: list[Mask | None] = []
    for number, (sequence, part) in enumerate(zip(sequences, masked, strict=False)):
        sequence.tokens += [(seed + step * step) % size for step in range(number * 7)]
        chosen = torch.rand(size, generator=torch.Generator().manual_seed(seed + number)) < part
        words = numpy.zeros(-(-size // 32) + seed % 2, numpy.int32)  # as long as the vocabulary, or longer
        words.view(numpy.uint8)[: -(-size // 8)] = numpy.packbits(chosen.numpy(), bitorder="little")
        masks.append(words if part < 0.9 and bool(chosen.any()) else None)
    expected = TorchSampler().sample(batch_of(sequences), logits, masks)
    for name in SETS:
        assert NativeSampler(name).sample(batch_of(sequences), logits, masks) == expected, name
    assert torch.equal(logits, untouched), "the caller's logits were changed"


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [0.02, 0.5, 0.9, 0.9999])
def test_a_wide_nucleus_is_that_of_the_reference(top_p: float, temperature: float) -> None:
    logits = torch.randn(40, 20_000, generator=torch.Generator().manual_seed(3)) * 2
    sequences = [Sequence("", (1,), Sampling(temperature=temperature, top_p=top_p, seed=seed)) for seed in range(40)]
    expected = TorchSampler().sample(batch_of(sequences), logits)
    assert len(set(expected)) > 10
    for name in SETS:
        assert NativeSampler(name).sample(batch_of(sequences), logits) == expected


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_frequencies_are_the_probabilities(top_p: float, name: str) -> None:
    logits = [2.0, 1.0, 0.5, 0.0, -1.0]
    expected = slow_nucleus(logits, 0.8, top_p)
    count = 4000
    sequences = [Sequence("", (1,), Sampling(temperature=0.8, top_p=top_p, seed=seed)) for seed in range(count)]
    drawn = Counter(NativeSampler(name).sample(batch_of(sequences), torch.tensor([logits] * count)))
    assert set(drawn) == set(expected)
    for id, probability in expected.items():
        deviation = math.sqrt(probability * (1 - probability) / count)
        assert abs(drawn[id] / count - probability) < 4.5 * deviation


@pytest.mark.parametrize("name", SETS)
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    logits = torch.randn(9, 3000, generator=torch.Generator().manual_seed(5))
    kinds = (Sampling(temperature=0), Sampling(top_p=0.9, seed=4), Sampling(top_k=9, logit_bias=((2, 5.0),), seed=5))
    sequences = [Sequence("", (1,), kinds[row % 3]) for row in range(9)]
    together = NativeSampler(name).sample(batch_of(sequences), logits)
    for row in range(9):
        assert NativeSampler(name).sample(batch_of([sequences[row]]), logits[row : row + 1]) == [together[row]]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.nan])
@pytest.mark.parametrize("place", [0, 15, 63, 64, 199])
def test_damaged_logits_are_an_error(bad: float, place: int, name: str) -> None:
    logits = torch.zeros(2, 200)
    logits[1, place] = bad
    for sampling in (Sampling(temperature=0), Sampling(top_p=0.5, seed=1)):
        with pytest.raises(EngineFailed, match="NaN or infinite"):
            NativeSampler(name).sample(batch_of([Sequence("", (1,), sampling)] * 2), logits)
    with pytest.raises(EngineFailed, match="NaN or infinite"):
        NativeSampler(name).sample(batch_of([Sequence("", (1,), Sampling())]), torch.full((1, 9), -math.inf))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("size", SIZES)
def test_logprobs_are_log_softmax(size: int, name: str) -> None:
    logits = random_logits(3, size, size, 1, 3.0)
    sampling = Sampling(temperature=0.1, logprobs=20, logit_bias=((0, 9.0),))  # the bias is not seen
    sequences = [Sequence("", (1,), sampling), Sequence("", (1,), Sampling()), Sequence("", (1,), sampling)]
    tokens = [size - 1, 0, size // 2]
    results = NativeSampler(name).logprobs(batch_of(sequences), logits, tokens)
    expected = TorchSampler().logprobs(batch_of(sequences), logits, tokens)
    assert results[1] is None
    for row in (0, 2):
        found, same, exact = results[row], expected[row], numpy.exp(logits[row].double().numpy())
        assert found is not None
        assert same is not None
        with numpy.errstate(divide="ignore"):
            exact = numpy.log(exact / exact.sum())
        assert found.sampled == pytest.approx(exact[tokens[row]], abs=1e-12)
        order = sorted(range(size), key=lambda id: (-float(logits[row, id]), id))[:20]
        assert [id for id, _ in found.top] == order == [id for id, _ in same.top]
        assert [value for _, value in found.top] == pytest.approx([exact[id] for id in order], abs=1e-12)
        assert [value for _, value in same.top] == pytest.approx([exact[id] for id in order], abs=1e-12)


def test_invalid_arguments_are_refused() -> None:
    row = numpy.zeros((1, 9), numpy.float32)
    chosen, _ = core().choose("")

    def drawn(options: Any = (1.0, 1.0, 0.0, 0.5, 0), change: Any = None, mask: Any = None, rows: int = 1) -> Any:
        rows_of_options = numpy.array([options] * rows, numpy.float64)
        masks = [None if mask is None else numpy.array(mask, numpy.uint32)]
        changes = [None if change is None else (numpy.array(change[0], numpy.int64), numpy.float32(change[1]))]
        return core().sample(row, rows_of_options, changes, masks, chosen)

    assert drawn() == [4]
    assert drawn(mask=[1 << 7 | 1 << 8]) == [8]
    assert drawn(mask=[1 << 5 | 1 << 9, 3]) == [5], "ids beyond the vocabulary are not drawn"
    refused: tuple[dict[str, Any], ...] = (
        {"rows": 2},
        {"options": (-1.0, 1.0, 0.0, 0.5, 0)},
        {"options": (math.nan, 1.0, 0.0, 0.5, 0)},
        {"options": (1.0, 0.0, 0.0, 0.5, 0)},
        {"options": (1.0, 1.0, 1.5, 0.5, 0)},
        {"options": (1.0, 1.0, 0.0, 1.0, 0)},
        {"options": (1.0, 1.0, 0.0, 0.5, -1)},
        {"change": ([9], [1.0])},
        {"change": ([-1], [1.0])},
        {"change": ([1, 2], [1.0])},
        {"mask": []},
        {"mask": [1 << 9]},
        {"mask": [0, 3]},
    )
    for wrong in refused:
        with pytest.raises(ValueError, match=r" (is|has|are|names|allows) "):
            drawn(**wrong)
    for id in (-1, 9):
        with pytest.raises(ValueError, match="does not exist"):
            core().logprobs(row[0], id, 3, chosen)
    with pytest.raises(ValueError, match="NaN"):
        core().logprobs(numpy.full(9, math.nan, numpy.float32), 1, 3, chosen)


def test_if_all_ids_are_impossible_the_first_allowed_one_is_drawn() -> None:
    logits = torch.zeros(2, 9)
    logits[:, 4:] = -math.inf
    mask = bits([5, 7])
    for sampling in (Sampling(temperature=0), Sampling(top_p=0.5, top_k=1, min_p=0.1, seed=1)):
        batch = batch_of([Sequence("", (1,), sampling)] * 2)
        assert TorchSampler().sample(batch, logits, [mask, None])[0] == 5
        assert NativeSampler().sample(batch, logits, [mask, None])[0] == 5


def test_the_choice_says_which_and_why() -> None:
    choice = choose_sampler().choice
    assert choice.subject == "sampling"
    assert choice.value.startswith("native, ")
    assert choice.reason


def test_without_the_compiled_module_torch_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.sampling.sampler.absent", lambda: "no compiler")
    sampler = choose_sampler()
    assert isinstance(sampler, TorchSampler)
    assert (sampler.choice.value, sampler.choice.reason) == ("torch", "no compiler")
