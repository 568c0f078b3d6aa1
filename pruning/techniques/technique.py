"""The interface of a layer-wise technique: its options, the statistics it needs, and `apply` on one weight.

A technique is a frozen value without state or hooks, so a recipe can be compared, hashed and stored. Its options are
read without torch, which `apply` imports.
"""

from typing import TYPE_CHECKING, ClassVar

import msgspec

from pruning.techniques.mathematics.sparsity import Sparsity, nm_pattern

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.passes.statistics import InputStatistics, Statistic


class Technique(msgspec.Struct, frozen=True, tag_field="name", tag=str.lower, forbid_unknown_fields=True):
    """Prune or quantise the weight of one linear layer; the fields are the recipe's options and lineage record."""

    sparsity: Sparsity
    """What to remove: a fraction of the weights (0.5), or N:M, which keeps N of every M consecutive input columns
    ("2:4")."""

    observes: ClassVar[tuple[str, ...]] = ()
    """Names of these statistics in `pruning.passes.statistics`, known without torch."""
    moments: ClassVar[tuple[int, ...]] = ()
    """Powers p of the gradient whose means E[g^p] `apply` reads; they cost one backward pass before the first block."""

    sees_loss: ClassVar[bool] = False
    """Whether `apply` weighs output errors by the Fisher matrix in the statistics, where there is one."""

    def __post_init__(self) -> None:
        nm_pattern(self.sparsity)

    @property
    def needs(self) -> "tuple[type[Statistic], ...]":
        """Statistics of the layer's inputs that `apply` reads."""
        from pruning.passes import statistics

        return tuple(getattr(statistics, name) for name in self.observes)

    def apply(self, weight: "Tensor", observed: "InputStatistics") -> "Tensor | None":
        """Prune `weight` [outputs, inputs], float32, in place; removed weights become exactly +0.

        Returns None, or the scales [outputs, groups], float16, if the technique quantises: the weight is then code *
        scale.
        """
        raise NotImplementedError
