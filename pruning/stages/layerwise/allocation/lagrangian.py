"""Chooses a level for each matrix: the least total loss within a budget, by Lagrangian relaxation."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Option(NamedTuple):
    """What one level of a matrix costs, and the loss it is predicted to have."""

    cost: float
    loss: float


def choose_levels(options: Sequence[Sequence[Option]], budget: float) -> list[int]:
    """The number of the chosen option of each matrix, with a total cost of `budget` at most.

    Every matrix starts at its cheapest option; steps along its lower convex hull are taken in the order of loss saved
    per cost, which minimises loss + lambda * cost for the lambda of the last step. Steps too large for what is left of
    the budget are passed over. Raises ValueError if the cheapest options exceed the budget.
    """
    hulls = [_hull(own) for own in options]
    chosen = [hull[0] for hull in hulls]
    left = budget - sum(own[number].cost for own, number in zip(options, chosen, strict=True))
    if left < -1e-9 * budget:
        raise ValueError("the cheapest levels cost more than the budget")
    steps = sorted(
        (_slope(own[before], own[after]), matrix, place + 1)
        for matrix, (own, hull) in enumerate(zip(options, hulls, strict=True))
        for place, (before, after) in enumerate(pairwise(hull))
    )
    reached = [0] * len(options)
    for _, matrix, place in steps:
        if reached[matrix] != place - 1:  # an earlier step of this matrix was too large
            continue
        after = hulls[matrix][place]
        price = options[matrix][after].cost - options[matrix][chosen[matrix]].cost
        if price <= left + 1e-9 * budget:
            chosen[matrix], reached[matrix] = after, place
            left -= price
    return chosen


def _hull(options: Sequence[Option]) -> list[int]:
    """The numbers of the options on the lower convex hull of (cost, loss), from the cheapest to the least loss."""
    hull: list[int] = []
    for number in sorted(range(len(options)), key=lambda n: (options[n].cost, options[n].loss)):
        option = options[number]
        if hull and option.loss >= options[hull[-1]].loss:
            continue
        while len(hull) > 1 and _slope(options[hull[-1]], option) <= _slope(options[hull[-2]], options[hull[-1]]):
            hull.pop()
        hull.append(number)
    return hull


def _slope(before: Option, after: Option) -> float:
    """The change of loss per cost from one option to a dearer one."""
    return (after.loss - before.loss) / (after.cost - before.cost)
