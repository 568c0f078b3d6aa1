"""RIA: remove the least relative importance, |W_ij| over its row's plus over its column's sum, times ||X_j||^a.

Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models (ICLR 2024), the
equation of relative importance and activations. The other weights keep their values. A fraction is taken of the whole
matrix, as in the authors' code; there is no channel permutation.
"""

from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from pruning.passes.statistics import InputNorm, InputStatistics, Statistic
from pruning.techniques.mathematics.patterns import keep_matrix
from pruning.techniques.technique import Technique


class RIA(Technique, frozen=True):
    """Remove the weights that matter least within their row and column; costs one pass over the data and a sort."""

    power: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Exponent a of the input norm: 0 ignores the inputs, 1 weighs them as Wanda does; 0.5 is the paper's."""

    needs: ClassVar[tuple[type[Statistic], ...]] = (InputNorm,)

    def apply(self, weight: Tensor, observed: InputStatistics) -> None:
        """Prune `weight` [outputs, inputs] in place."""
        score = relative_importance(weight) * observed[InputNorm].value.pow(self.power)
        weight.masked_fill_(~keep_matrix(score, self.sparsity), 0)


def relative_importance(weight: Tensor) -> Tensor:
    """|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij| of `weight`, [outputs, inputs]; 0 where the weight is 0."""
    size = weight.abs()
    least = torch.finfo(size.dtype).tiny  # of a row or column of zeros
    return size / size.sum(dim=0).clamp_min(least) + size / size.sum(dim=1, keepdim=True).clamp_min(least)
