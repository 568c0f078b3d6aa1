"""ADMM against ALPS done with plain linear systems, and its promise never to be worse than where it starts."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pruning.errors import ModelRefused
from pruning.passes.statistics import Gram, InputStatistics, Spectrum
from pruning.techniques import ADMM, SparseGPT
from pruning.techniques.mathematics.conjugate_gradient import refit_kept
from pruning.techniques.mathematics.losses import layer_error
from pruning.techniques.mathematics.patterns import keep_matrix
from tests.reference import slow

PATTERNS: list[tuple[float | str, Any]] = [(0.5, 0.5), (0.7, 0.7), ("2:4", (2, 4)), ("32:64", (32, 64))]


def problem(seed: int = 0, rows: int = 12, columns: int = 64) -> tuple[torch.Tensor, InputStatistics]:
    """A weight [rows, columns], and what is observed of correlated inputs with 12 tokens a column."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4, 3 * columns, columns, generator=generator)
    inputs = inputs @ (torch.eye(columns) + torch.randn(columns, columns, generator=generator) / columns**0.5)
    inputs *= torch.rand(columns, generator=generator) * 3 + 0.1
    observed = InputStatistics(ADMM(0.5).needs, columns)
    observed.update(inputs)
    return torch.randn(rows, columns, generator=generator), observed


@pytest.mark.parametrize(("sparsity", "plain"), PATTERNS)
def test_the_pattern_is_that_of_algorithm_1(sparsity: float | str, plain: Any) -> None:
    weight, observed = problem()
    gram = observed[Gram].value.double()
    spectrum = Spectrum.of(gram.clone(), 0.01)  # in float32 near ties would differ
    found = ADMM(sparsity)._pattern(weight * spectrum.scale, spectrum)
    expected = torch.from_numpy(slow.admm(weight.double().numpy(), gram.numpy(), plain, 0.1, 60))
    assert torch.equal(found != 0, expected != 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_the_refit_is_the_optimum_on_the_pattern() -> None:
    weight, observed = problem()
    matrix = observed[Gram].spectrum(0.01).matrix
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    keep[3] = False
    result = refit_kept(weight * keep, weight, matrix, 64)
    expected = slow.best_on_pattern(weight.double().numpy(), keep.numpy(), matrix.double().numpy())
    assert torch.equal(result != 0, keep)
    torch.testing.assert_close(result.double(), torch.from_numpy(expected), rtol=0, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.3, 0.5, 0.8, "2:4", "3:7", "32:64"]),
    st.integers(1, 6),
    st.integers(0, 3),
    st.floats(0.001, 10),
)
@example(0, 0.5, 1, 0, 10.0)  # hopeless options: the start wins
def test_the_error_is_never_larger_than_sparsegpts(
    seed: int, sparsity: Any, iterations: int, refits: int, penalty: float
) -> None:
    weight, observed = problem(seed, rows=6)
    start, result = weight.clone(), weight.clone()
    SparseGPT(sparsity).apply(start, observed)
    ADMM(sparsity, iterations=iterations, refits=refits, penalty=penalty).apply(result, observed)
    gram = observed[Gram].value.double()
    error = layer_error((result - weight).double(), gram)
    assert error <= layer_error((start - weight).double(), gram) * (1 + 1e-5)  # both were compared in float32
    assert torch.equal((result != 0).sum(), (start != 0).sum())


@pytest.mark.parametrize(("sparsity", "_"), PATTERNS)
def test_it_is_much_better_than_sparsegpt(sparsity: float | str, _: Any) -> None:
    weight, observed = problem()
    start, result = weight.clone(), weight.clone()
    SparseGPT(sparsity).apply(start, observed)
    ADMM(sparsity).apply(result, observed)
    gram = observed[Gram].value
    assert layer_error(result - weight, gram) < 0.8 * layer_error(start - weight, gram)
    assert torch.equal((result != 0).sum(dim=1), (keep_matrix(result.abs(), sparsity)).sum(dim=1))


def test_dead_inputs_lose_their_weights_and_do_no_harm() -> None:
    weight, _ = problem()
    observed = InputStatistics(ADMM(0.5).needs, 64)
    observed.update(torch.randn(4, 200, 64) * (torch.arange(64) != 7))
    ADMM("2:4").apply(weight, observed)
    assert weight.isfinite().all()
    assert not weight[:, 7].any()


def test_inputs_that_are_not_finite_are_refused() -> None:
    weight, _ = problem()
    observed = InputStatistics(ADMM(0.5).needs, 64)
    observed.update(torch.full((1, 2, 64), torch.inf))
    before = weight.clone()
    with pytest.raises(ModelRefused, match="the inputs of a layer of 64 columns are not finite"):
        ADMM(0.5).apply(weight, observed)
    assert torch.equal(weight, before)
