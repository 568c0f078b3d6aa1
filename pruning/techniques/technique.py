"""What every layer-wise technique has in common: options, the statistics it needs, and one change to one weight.

A technique is a value: it holds no state and no hooks, so a recipe can be compared, hashed and stored.
"""

from typing import ClassVar

import msgspec
from torch import Tensor

from pruning.passes.statistics import InputStatistics, Statistic
from pruning.techniques.mathematics.patterns import Sparsity, groups_of


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

    def apply(self, weight: Tensor, observed: InputStatistics) -> Tensor | None:
        """Prune `weight` [outputs, inputs], float32, in place; what is removed becomes exactly +0.

        One that quantises returns the scales [outputs, groups], float16: the weight is then integers times these.
        """
        raise NotImplementedError
