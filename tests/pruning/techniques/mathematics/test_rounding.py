"""Grids with a minimum: against a slow search of the same candidates, against symmetric codes, and refits."""

import numpy
import pytest
import torch
from torch import Tensor

from pruning.techniques.mathematics.rounding import (
    CANDIDATES,
    nearest_values,
    refit_scales,
    round_groups,
    round_with_scales,
    search_grid,
)
from server.artifact.checkpoint.quantised import pack_quantised, unpack_quantised


def slow_cost(row: list[float], importance: list[float], scale: float, minimum: float, bits: int) -> float:
    """The cost of a grid, weight by weight."""
    total = 0.0
    for value, weight in zip(row, importance, strict=True):
        code = min(max(round((value - minimum) / scale), 0), 2**bits - 1) if scale else 0
        total += weight * (value - code * scale - minimum) ** 2
    return total


def slow_grid(row: list[float], importance: list[float], bits: int) -> float:
    """The least cost of all candidates, each fitted by numpy's weighted polynomial."""
    low, high, most = min(*row, 0), max(*row, 0), 2**bits - 1
    costs = [slow_cost(row, importance, float(numpy.float16((high - low) / most)), float(numpy.float16(low)), bits)]
    for wider in numpy.linspace(-1, 1, CANDIDATES):
        codes = [min(max(round((value - low) / ((high - low) / (most + wider))), 0), most) for value in row]
        scale, minimum = numpy.polyfit(codes, row, 1, w=numpy.sqrt(importance))
        scale, minimum = float(numpy.float16(scale)), float(numpy.float16(min(minimum, 0)))
        if scale * most + minimum >= 0:
            costs.append(slow_cost(row, importance, scale, minimum, bits))
    return min(costs)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("shift", [0.0, 0.7, -0.7])
def test_a_searched_grid_costs_what_the_slow_search_finds(bits: int, shift: float) -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(bits)) + shift
    importance = torch.rand(32, generator=torch.Generator().manual_seed(1)) + 0.1
    for row, grid in zip(weight.tolist(), search_grid(weight, importance, bits).tolist(), strict=True):
        found = slow_cost(row, importance.tolist(), grid[0], grid[1], bits)
        assert found == pytest.approx(slow_grid(row, importance.tolist(), bits), rel=0.02)


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_a_minimum_halves_what_skewed_weights_lose_and_is_stored_as_it_was_rounded(bits: int) -> None:
    exact = torch.rand(16, 96, generator=torch.Generator().manual_seed(bits)).bfloat16() - 0.1
    losses = {}
    for asymmetric in (False, True):
        weight = exact.clone()
        grid = round_groups(weight, torch.ones(96), bits, 32, asymmetric=asymmetric)
        losses[asymmetric] = float((weight - exact).float().square().sum())
        layout, parts = pack_quantised(weight, grid)
        assert (layout.bits, layout.asymmetric) == (bits, asymmetric)
        assert torch.equal(unpack_quantised(parts, layout), weight)
    assert losses[True] < losses[False] / 2


def error(weight: Tensor, grid: Tensor) -> Tensor:
    """The squared error of each row."""
    return (round_with_scales(weight, grid, 4, 32).float() - weight).square().sum(dim=1)


def test_a_refitted_grid_is_the_least_squares_line_through_codes_and_weights() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    grid = search_grid(weight.view(8, 2, 32), torch.ones(32), 4) * torch.tensor([1.05, 1.0])
    fitted = refit_scales(weight, grid, 4, 32)
    part, (scale, minimum) = weight[3, 32:], grid[3, 1].tolist()
    codes = ((nearest_values(part[None], grid[3, 1][None], 4)[0] - minimum) / scale).round()
    slope, offset = numpy.polyfit(codes.numpy(), part.numpy(), 1)
    assert fitted[3, 1].tolist() == pytest.approx([slope, offset], rel=2e-3)
    assert (error(weight, fitted) <= error(weight, grid) * 1.01).all()


def test_equal_weights_keep_their_value_to_float16() -> None:
    for value in (0.0, 0.3, -0.3):
        grid = search_grid(torch.full((1, 32), value), torch.ones(32), 4)
        assert nearest_values(torch.full((1, 32), value), grid, 4)[0, 0].item() == pytest.approx(value, rel=1e-3)
