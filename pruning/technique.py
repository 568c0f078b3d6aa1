"""What every layer-wise technique has in common: options, the statistics it needs, and one change to one weight.

A technique is a value: it holds no state and no hooks, so a recipe can be compared, hashed and stored.
"""

from collections.abc import Mapping
from copy import copy
from typing import ClassVar, TypeVar, cast

import msgspec
from torch import Tensor

from pruning.patterns import Sparsity, groups_of
from pruning.statistics import Statistic

S = TypeVar("S", bound=Statistic)


class Observed:
    """The statistics of the inputs of one linear layer, by their type: `observed[Gram].value`."""

    def __init__(self, needs: tuple[type[Statistic], ...], columns: int, layer: str = Statistic.layer) -> None:
        self._statistics = {need: need(columns) for need in needs}
        for statistic in self._statistics.values():
            statistic.layer = layer
        self.moments: Mapping[int, Tensor] = {}
        """E[g^p] over the sequences of the weight's gradient, [outputs, inputs], by p."""

    def __getitem__(self, need: type[S]) -> S:
        return cast(S, self._statistics[need])

    def __contains__(self, need: type[Statistic]) -> bool:
        return need in self._statistics

    def update(self, inputs: Tensor) -> None:
        """Show one batch of inputs [..., tokens, columns] to every statistic."""
        for statistic in self._statistics.values():
            statistic.update(inputs)

    def with_moments(self, moments: Mapping[int, Tensor]) -> "Observed":
        """These very statistics, which layers may share, and the moments of one layer's own gradients."""
        observed = copy(self)
        observed.moments = moments
        return observed


class Technique(msgspec.Struct, frozen=True, tag_field="name", tag=str.lower, forbid_unknown_fields=True):
    """Removes weights from one linear layer at a time; its fields are the recipe's options and the lineage's record."""

    sparsity: Sparsity
    """0.5 removes half; "2:4" keeps 2 of every 4 input columns."""

    needs: ClassVar[tuple[type[Statistic], ...]] = ()
    """Statistics of the inputs that `apply` reads."""
    moments: ClassVar[tuple[int, ...]] = ()
    """Powers p of the gradients whose means E[g^p] `apply` reads: they cost a pass backward before all blocks."""

    def __post_init__(self) -> None:
        groups_of(self.sparsity)

    def apply(self, weight: Tensor, observed: Observed) -> Tensor | None:
        """Prune `weight` [outputs, inputs], float32, in place; what is removed becomes exactly +0.

        One that quantises returns the scales [outputs, groups], float16: the weight is then integers times these.
        """
        raise NotImplementedError
