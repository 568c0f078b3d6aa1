"""Magnitude: remove the weights with the least |weight| in the whole matrix; update none.

The oldest rule and the baseline of every paper: Han et al., Learning both Weights and Connections for Efficient
Neural Networks, https://arxiv.org/abs/1506.02626
"""

from torch import Tensor

from pruning.passes.statistics import InputStatistics
from pruning.techniques.mathematics.patterns import keep_matrix
from pruning.techniques.technique import Technique


class Magnitude(Technique, frozen=True):
    """Needs no data."""

    def apply(self, weight: Tensor, observed: InputStatistics) -> None:
        """Prune `weight` [outputs, inputs] in place."""
        weight.masked_fill_(~keep_matrix(weight.abs(), self.sparsity), 0)
