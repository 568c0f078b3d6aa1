"""The two-sided objective tr(F E H E^T) against dense least squares on the Kronecker product, done slowly."""

import numpy
import pytest
import torch
from torch import Tensor

from pruning.passes.statistics import Gram, InputStatistics
from pruning.techniques import ADMM, GPTQ, SparseGPT
from pruning.techniques.mathematics.columns import FISHER_DAMPING, ROWS, settle_rows
from pruning.techniques.mathematics.conjugate_gradient import refit_kept
from pruning.techniques.mathematics.losses import layer_error
from pruning.techniques.technique import Technique


def regular(size: int, seed: int) -> Tensor:
    """A symmetric positive definite matrix with strong correlations."""
    draw = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(seed))
    draw += 2 * torch.randn(1, 2 * size, generator=torch.Generator().manual_seed(seed + 1))
    return draw @ draw.T / size


def problem(rows: int, columns: int = 64) -> tuple[Tensor, InputStatistics]:
    """A weight and the statistics of correlated inputs and gradients."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 6 * columns, columns, generator=draw) + 2 * torch.randn(4, 6 * columns, 1, generator=draw)
    observed = InputStatistics((Gram,), columns)
    observed.update(inputs)
    weight = torch.randn(rows, columns, generator=draw)
    return weight, observed.with_gradients({}, regular(rows, 3))


def test_later_rows_make_up_for_the_error_of_earlier_ones_by_least_squares() -> None:
    rows, columns = ROWS + 10, 5
    fisher, gram = regular(rows, 0).double(), regular(columns, 7).double()
    start = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).double()
    moved, seen = start.clone(), []

    def settle(part: slice) -> None:
        seen.append(moved[part].clone())
        moved[part] = moved[part].round()

    settle_rows(moved, fisher, settle)
    damped = fisher + FISHER_DAMPING * fisher.diagonal().mean() * torch.eye(rows)
    hessian = numpy.kron(damped.numpy(), gram.numpy())  # of E, row after row
    first = ROWS * columns
    error = (start[:ROWS].round() - start[:ROWS]).flatten().numpy()
    rest = -numpy.linalg.solve(hessian[first:, first:], hessian[first:, :first] @ error)
    assert torch.equal(seen[0], start[:ROWS])
    numpy.testing.assert_allclose((seen[1] - start[ROWS:]).flatten(), rest, rtol=1e-6, atol=1e-8)


def test_the_refit_is_the_least_error_on_the_pattern() -> None:
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).double()
    fisher, gram = regular(5, 1).double(), regular(6, 2).double()
    keep = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    found = refit_kept(weight * keep, weight, gram, 60, fisher)
    hessian, kept = numpy.kron(fisher.numpy(), gram.numpy()), keep.flatten().numpy()
    wanted = numpy.linalg.solve(hessian[numpy.ix_(kept, kept)], (hessian @ weight.flatten().numpy())[kept])
    assert torch.equal(found != 0, keep)
    numpy.testing.assert_allclose(found[keep], wanted, rtol=1e-5)


def test_the_error_is_the_sum_over_all_pairs_of_weights() -> None:
    fisher, gram = regular(3, 1).double(), regular(4, 2).double()
    change = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    slow = sum(
        float(fisher[i, k] * gram[j, m] * change[i, j] * change[k, m])
        for i in range(3) for k in range(3) for j in range(4) for m in range(4)
    )  # fmt: skip
    assert layer_error(change, gram, fisher) == pytest.approx(slow)
    assert layer_error(change, gram, torch.eye(3).double()) == pytest.approx(layer_error(change, gram))


@pytest.mark.parametrize(
    "technique", [SparseGPT("32:64"), ADMM("32:64"), ADMM(0.5), GPTQ(0, bits=3), GPTQ("32:64", bits=4, group=32)]
)
def test_the_loss_objective_lowers_the_loss_that_it_names(technique: Technique) -> None:
    weight, observed = problem(2 * ROWS + 8)
    two, one = weight.clone(), weight.clone()
    scales = technique.apply(two, observed)
    technique.apply(one, observed.with_gradients({}))
    gram, fisher = observed[Gram].value, observed.outputs
    assert layer_error(two - weight, gram, fisher) < 0.9 * layer_error(one - weight, gram, fisher)
    assert abs(int((two == 0).sum()) - int((one == 0).sum())) <= 0.02 * weight.numel()
    if scales is not None:
        assert isinstance(technique, GPTQ)
        assert scales.shape == (len(weight), weight.shape[1] // technique.group)


def test_with_uncorrelated_outputs_of_equal_weight_nothing_changes() -> None:
    weight, observed = problem(ROWS + 8)
    two, one = weight.clone(), weight.clone()
    SparseGPT("32:64").apply(two, observed.with_gradients({}, torch.eye(len(weight))))
    SparseGPT("32:64").apply(one, observed.with_gradients({}))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)
