"""RIA: remove the least relative importance, |W_ij| over its row's plus over its column's sum, times ||X_j||^a.

Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models (ICLR 2024), the
equation of relative importance and activations. The other weights keep their values. A fraction is taken of the whole
matrix, as in the authors' code; there is no channel permutation.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from pruning.techniques.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.passes.statistics import InputStatistics


class RIA(Technique, frozen=True):
    """Remove the weights that matter least within their row and column; costs one pass over the data and a sort."""

    power: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Exponent a of the input norm: 0 ignores the inputs, 1 weighs them as Wanda does; 0.5 is the paper's."""

    observes: ClassVar[tuple[str, ...]] = ("InputNorm",)

    def apply(self, weight: "Tensor", observed: "InputStatistics") -> None:
        """Prune `weight` [outputs, inputs] in place."""
        from pruning.passes.statistics import InputNorm
        from pruning.techniques.mathematics.patterns import keep_matrix
        from pruning.techniques.mathematics.relative_importance import relative_importance

        score = relative_importance(weight) * observed[InputNorm].value.pow(self.power)
        weight.masked_fill_(~keep_matrix(score, self.sparsity), 0)
