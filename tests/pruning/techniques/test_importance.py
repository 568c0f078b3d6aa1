"""Importance of units and compensation of removals against the formulas done slowly."""

from typing import Literal, get_args

import numpy
import pytest
import torch

from pruning.passes.statistics import Gram, InputMean
from pruning.techniques.fluctuation import fluctuation, fold_mean
from pruning.techniques.importance import Taylor
from pruning.techniques.mathematics.removal import remove_units
from tests.reference import slow

Order = Literal["param_first", "param_second", "param_mix", "vectorize"]
GENERATOR = torch.Generator().manual_seed(3)


@pytest.mark.parametrize("order", get_args(Order))
def test_taylor_is_the_papers_formula(order: Order) -> None:
    weight = torch.randn(12, 7, generator=GENERATOR)
    gradients = [torch.randn(12, 7, generator=GENERATOR) for _ in range(5)]
    importance = Taylor(order)
    moments = {power: torch.stack([g**power for g in gradients]).mean(dim=0) for power in importance.powers}
    rows = slow.taylor(weight.double().numpy(), [g.double().numpy() for g in gradients], order)
    expected = torch.from_numpy(rows).view(4, 3).sum(dim=1)
    torch.testing.assert_close(importance.units(weight, moments, 4).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "count"), [(1, 9), (4, 4)])
def test_removal_is_least_squares_on_what_stays(size: int, count: int) -> None:
    columns = 32
    weight = torch.randn(10, columns, generator=GENERATOR)
    scale = torch.rand(columns, generator=GENERATOR) + 0.1  # what a unit costs is not what its weights say
    mixing = scale * (torch.eye(columns) + torch.randn(columns, columns, generator=GENERATOR) / columns**0.5)
    inputs = torch.randn(4, 60, columns, generator=GENERATOR) @ mixing
    gram = Gram(columns)
    gram.update(inputs)
    rows = inputs.flatten(0, 1).double().numpy()
    kept, refit = slow.least_squares_removal(weight.double().numpy(), 2 / 4 * rows.T @ rows, size, count)
    factor = gram.inverse_factor(0.01).double()
    result = weight.clone()
    found = remove_units(result, factor.T @ factor, columns // size, count)
    assert found.tolist() == kept
    torch.testing.assert_close(result.double(), torch.from_numpy(refit), rtol=0, atol=1e-4)
    gone = torch.ones(columns // size, dtype=torch.bool)
    gone[found] = False
    assert not result.view(10, -1, size)[:, gone].any()


def test_ties_remove_the_lower_unit_first() -> None:
    weight = torch.ones(3, 6)
    assert remove_units(weight, torch.eye(6, dtype=torch.float64), 6, 2).tolist() == [2, 3, 4, 5]
    assert torch.equal(weight, torch.tensor([0.0, 0, 1, 1, 1, 1]).expand(3, 6))


def uneven_inputs(columns: int) -> torch.Tensor:
    """Inputs [sequences, tokens, columns] whose features have other means and variances each, and go together."""
    mixing = torch.randn(columns, columns, generator=GENERATOR) / columns**0.5 + 2 * torch.eye(columns)
    scale, mean = torch.rand(columns, generator=GENERATOR) + 0.3, torch.randn(columns, generator=GENERATOR)
    return torch.randn(4, 60, columns, generator=GENERATOR).matmul(mixing) * scale + mean


@pytest.mark.parametrize("size", [1, 4])
def test_flap_is_the_papers_formula(size: int) -> None:
    weight, inputs = torch.randn(10, 24, generator=GENERATOR), uneven_inputs(24)
    observed = InputMean(24)
    observed.update(inputs[:3])
    observed.update(inputs[3:])
    expected = slow.fluctuation(weight.double().numpy(), inputs.flatten(0, 1).double().numpy(), size)
    found = fluctuation(weight, observed.variance, 24 // size)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=0)


def test_flap_folds_the_mean_by_least_squares_into_what_stays() -> None:
    weight, inputs = torch.randn(10, 24, generator=GENERATOR), uneven_inputs(24)
    gone = torch.zeros(24, dtype=torch.bool)
    gone[[3, 4, 11, 20]] = True
    gram, observed = Gram(24), InputMean(24)
    gram.update(inputs)
    observed.update(inputs)
    rows = inputs.flatten(0, 1).double().numpy()
    lost = weight[:, gone].double().numpy() @ rows[:, gone.numpy()].mean(axis=0)
    stay = rows[:, ~gone.numpy()]
    update = numpy.linalg.lstsq(stay, numpy.tile(lost, (len(rows), 1)), rcond=None)[0].T  # least squares on the data
    folded = weight.clone()
    fold_mean(folded, gone, observed.mean, gram.only(~gone).inverse_moment(1e-7))
    expected = weight[:, ~gone].double() + torch.from_numpy(update)
    torch.testing.assert_close(folded[:, ~gone].double(), expected, rtol=0, atol=2e-4)
    assert not folded[:, gone].any()
