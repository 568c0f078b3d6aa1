"""What every layer-wise technique has in common: options, the statistics it needs, and one change to one weight.

A technique is a value: it holds no state and no hooks, so a recipe can be compared, hashed and stored.
"""

from typing import ClassVar, TypeVar, cast

import msgspec
from torch import Tensor

from pruning.patterns import Sparsity, groups_of
from pruning.statistics import Statistic

S = TypeVar("S", bound=Statistic)


class Observed:
    """The statistics of the inputs of one linear layer, by their type: `observed[Gram].value`."""

    def __init__(self, needs: tuple[type[Statistic], ...], columns: int) -> None:
        self._statistics = {need: need(columns) for need in needs}

    def __getitem__(self, need: type[S]) -> S:
        return cast(S, self._statistics[need])

    def update(self, inputs: Tensor) -> None:
        """Show one batch of inputs [..., tokens, columns] to every statistic."""
        for statistic in self._statistics.values():
            statistic.update(inputs)


class Technique(msgspec.Struct, frozen=True, tag_field="name", tag=str.lower, forbid_unknown_fields=True):
    """Removes weights from one linear layer at a time; its fields are the recipe's options and the lineage's record."""

    sparsity: Sparsity
    """0.5 removes half; "2:4" keeps 2 of every 4 input columns."""

    needs: ClassVar[tuple[type[Statistic], ...]] = ()

    def __post_init__(self) -> None:
        groups_of(self.sparsity)

    def apply(self, weight: Tensor, observed: Observed) -> None:
        """Prune `weight` [outputs, inputs], float32, in place; what is removed becomes exactly +0."""
        raise NotImplementedError
