"""Magnitude pruning: remove the smallest |W_ij| of the whole matrix; the other weights keep their values.

The baseline of every pruning paper: Han et al., Learning both Weights and Connections for Efficient Neural Networks,
https://arxiv.org/abs/1506.02626
"""

from typing import TYPE_CHECKING

from pruning.techniques.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.passes.statistics import InputStatistics


class Magnitude(Technique, frozen=True):
    """Remove the smallest weights of the matrix; needs no data."""

    def apply(self, weight: "Tensor", observed: "InputStatistics") -> None:
        """Prune `weight` [outputs, inputs] in place."""
        from pruning.techniques.mathematics.patterns import keep_matrix

        weight.masked_fill_(~keep_matrix(weight.abs(), self.sparsity), 0)
