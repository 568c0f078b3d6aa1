"""The choice of levels against every combination."""

import random
from itertools import product

import pytest

from pruning.stages.layerwise.allocation.lagrangian import Option, choose_levels


def total(options: list[list[Option]], chosen: tuple[int, ...] | list[int]) -> Option:
    picked = [own[number] for own, number in zip(options, chosen, strict=True)]
    return Option(sum(option.cost for option in picked), sum(option.loss for option in picked))


def problem(seed: int, convex: bool) -> list[list[Option]]:
    """Four matrices of different sizes at five levels; convex losses fall by less with each step."""
    draw, found = random.Random(seed), []
    for _ in range(4):
        size = draw.choice([1, 2, 4])
        falls = sorted((draw.random() for _ in range(5)), reverse=True) if convex else [draw.random() for _ in range(5)]
        found.append([Option(size * (level + 1), sum(falls[level:])) for level in range(5)])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_no_combination_within_the_budget_is_better_by_more_than_a_step(seed: int) -> None:
    options = problem(seed, convex=True)
    step = max(own[0].loss - own[1].loss for own in options)
    for budget in (sum(own[0].cost for own in options) + extra for extra in range(0, 30, 3)):
        found = total(options, choose_levels(options, budget))
        every = (total(options, chosen) for chosen in product(range(5), repeat=4))
        assert found.cost <= budget
        assert found.loss <= min(other.loss for other in every if other.cost <= budget) + step


@pytest.mark.parametrize("seed", range(20))
def test_where_the_budget_is_met_at_a_step_of_the_hull_the_choice_is_optimal(seed: int) -> None:
    options = problem(seed, convex=False)
    for weight in (0.05, 0.1, 0.2, 0.4):  # the definition: each matrix minimises loss + weight * cost
        chosen = [min((o.loss + weight * o.cost, n) for n, o in enumerate(own))[1] for own in options]
        wanted = total(options, chosen)
        assert total(options, choose_levels(options, wanted.cost)).loss == pytest.approx(wanted.loss)


def test_a_budget_below_the_cheapest_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="cost more than the budget"):
        choose_levels(problem(0, convex=True), 1.0)
