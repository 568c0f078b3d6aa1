"""Optimal Brain Damage: remove the least saliencies 1/2 h_qq w_q^2; the other weights keep their values.

LeCun, Denker and Solla, Optimal Brain Damage, NeurIPS 1989, equation 5. Deliberate difference: the second derivative
h_qq is the diagonal of the empirical Fisher matrix, E[g_q^2] with g the gradient of one sequence's mean next-token
loss; the paper computes it exactly, on a network small enough for that.
"""

from typing import TYPE_CHECKING, ClassVar

from pruning.techniques.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.passes.statistics import InputStatistics


class OBD(Technique, frozen=True):
    """Remove the weights that raise the loss least; costs one forward and one backward pass, and a sort."""

    moments: ClassVar[tuple[int, ...]] = (2,)

    def apply(self, weight: "Tensor", observed: "InputStatistics") -> None:
        """Prune `weight` [outputs, inputs] in place."""
        from pruning.techniques.mathematics.patterns import keep_matrix

        weight.masked_fill_(~keep_matrix(0.5 * observed.moments[2] * weight.square(), self.sparsity), 0)
