"""Wanda: remove the smallest |W_ij| * ||X_j|| of each row; the other weights keep their values.

Sun et al., A Simple and Effective Pruning Approach for Large Language Models, https://arxiv.org/abs/2306.11695,
equation 1.
"""

from typing import TYPE_CHECKING, ClassVar

from pruning.techniques.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.passes.statistics import InputStatistics


class Wanda(Technique, frozen=True):
    """Remove the weights of each row with the least magnitude x input norm; costs one pass over the data and a sort."""

    observes: ClassVar[tuple[str, ...]] = ("InputNorm",)

    def apply(self, weight: "Tensor", observed: "InputStatistics") -> None:
        """Prune `weight` [outputs, inputs] in place."""
        from pruning.passes.statistics import InputNorm
        from pruning.techniques.mathematics.patterns import keep_rows

        weight.masked_fill_(~keep_rows(weight.abs() * observed[InputNorm].value, self.sparsity), 0)
