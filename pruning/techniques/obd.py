"""Optimal Brain Damage: remove the weights whose loss rises least in a diagonal model of its curvature; update none.

LeCun, Denker and Solla, Optimal Brain Damage, NeurIPS 1989, equation 5: s_q = 1/2 h_qq w_q^2. The second derivative
h_qq is taken as the diagonal of the empirical Fisher matrix, E[g_q^2], with g of one sequence's mean next-token loss;
the paper's own network is small enough for exact second derivatives.
"""

from typing import ClassVar

from torch import Tensor

from pruning.passes.statistics import InputStatistics
from pruning.techniques.mathematics.patterns import keep_matrix
from pruning.techniques.technique import Technique


class OBD(Technique, frozen=True):
    """Costs a pass forward and one backward over the data, and a sort."""

    moments: ClassVar[tuple[int, ...]] = (2,)

    def apply(self, weight: Tensor, observed: InputStatistics) -> None:
        """Prune `weight` [outputs, inputs] in place."""
        weight.masked_fill_(~keep_matrix(0.5 * observed.moments[2] * weight.square(), self.sparsity), 0)
