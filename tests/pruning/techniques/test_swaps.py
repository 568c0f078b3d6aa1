"""Each exchange lowers the error and keeps the counts, and is the one that trying all would choose."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.passes.statistics import Gram, InputStatistics
from pruning.techniques import RIA, Swaps, Wanda
from pruning.techniques.mathematics import exchanges
from pruning.techniques.mathematics.patterns import keep_rows
from tests.reference import slow


def problem(seed: int, rows: int = 5, columns: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [rows, columns] and the Gram matrix of strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3 * columns, 5, generator=generator) @ torch.randn(5, columns, generator=generator)
    inputs += 0.5 * torch.randn(inputs.shape, generator=generator)  # five directions and noise: many exchanges pay
    return torch.randn(rows, columns, generator=generator), inputs.T @ inputs


def errors(weight: torch.Tensor, keep: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The layer error of each row, in float64."""
    removed = weight.double().masked_fill(keep, 0)
    return ((removed @ gram.double()) * removed).sum(dim=1)


def kept_in_runs(keep: torch.Tensor, width: int) -> list[list[int]]:
    """How many each row keeps in each run of `width` columns."""
    return [keep[:, start : start + width].sum(dim=1).tolist() for start in range(0, keep.shape[1], width)]


@pytest.mark.parametrize(("sparsity", "width"), [(0.5, 24), (0.25, 24), ("2:4", 4), ("4:8", 8), ("3:7", 7)])
@pytest.mark.parametrize("rounds", [1, 4, 50])
def test_the_exchanges_are_those_that_trying_all_would_choose(sparsity: Any, width: int, rounds: int) -> None:
    weight, gram = problem(seed=0)
    keep = keep_rows(weight.abs() * gram.diagonal().sqrt(), sparsity)
    plain = weight.double().numpy(), keep.numpy(), gram.double().numpy()
    expected = [slow.swapped(row, mask, plain[2], width, rounds).tolist() for row, mask in zip(*plain[:2], strict=True)]
    before = keep.clone()
    exchanges.swap(weight, keep, gram, width, rounds)
    assert keep.tolist() == expected
    assert not torch.equal(keep, before)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(0.5, 40), (0.7, 40), ("2:4", 4), ("8:16", 16)]))
def test_every_round_lowers_the_error_and_keeps_the_counts(seed: int, pattern: tuple[Any, int]) -> None:
    sparsity, width = pattern
    weight, gram = problem(seed, rows=6, columns=40)
    keep = keep_rows(weight.abs() * gram.diagonal().sqrt(), sparsity)
    counts = kept_in_runs(keep, width)
    for _ in range(8):
        before, mask = errors(weight, keep, gram), keep.clone()
        exchanges.swap(weight, keep, gram, width, 1)
        after, moved = errors(weight, keep, gram), (keep != mask).any(dim=1)
        assert (after[moved] < before[moved]).all()
        assert torch.equal(after[~moved], before[~moved])
        assert kept_in_runs(keep, width) == counts


def test_rows_with_different_counts_exchange_within_themselves() -> None:
    weight, gram = problem(seed=3)
    keep = (
        torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > torch.tensor([[0.1, 0.3, 0.5, 0.7, 0]]).T
    )
    before, counts = errors(weight, keep, gram), keep.sum(dim=1)
    exchanges.swap(weight, keep, gram, 24, 50)
    assert torch.equal(keep.sum(dim=1), counts)
    assert (errors(weight, keep, gram)[:4] < before[:4]).all()


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = problem(seed=4)
    whole, chunked = (keep_rows(weight.abs(), 0.5) for _ in range(2))
    exchanges.swap(weight, whole, gram, 24, 9)
    monkeypatch.setattr(exchanges, "CHUNK", 24**2 // 2)  # two rows
    exchanges.swap(weight, chunked, gram, 24, 9)
    assert torch.equal(whole, chunked)


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
@pytest.mark.parametrize(("start", "technique"), [("wanda", Wanda), ("ria", RIA)])
def test_without_rounds_it_is_its_start(sparsity: Any, start: Any, technique: type[Wanda | RIA]) -> None:
    weight, _ = problem(seed=5)
    observed = InputStatistics((*Swaps(0.5).needs, *technique(0.5).needs), 24)
    observed.update(torch.randn(4, 50, 24, generator=torch.Generator().manual_seed(1)))
    plain, refined, none = weight.clone(), weight.clone(), weight.clone()
    technique(sparsity).apply(plain, observed)
    Swaps(sparsity, start=start, rounds=0).apply(none, observed)
    Swaps(sparsity, start=start).apply(refined, observed)
    assert torch.equal(none, plain)
    gram = observed[Gram].value
    assert errors(weight, refined != 0, gram).sum() < errors(weight, plain != 0, gram).sum()
