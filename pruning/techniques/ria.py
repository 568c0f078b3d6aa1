"""RIA: remove the weights that matter least beside those of their own row and column, times the root of the input norm.

Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models (ICLR 2024), equation
for relative importance and activations. Fractions are of the whole matrix, as in its code; no channel permutation.
"""

from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from pruning.passes.statistics import InputNorm, InputStatistics, Statistic
from pruning.techniques.mathematics.patterns import keep_matrix
from pruning.techniques.technique import Technique


class RIA(Technique, frozen=True):
    """Costs one pass over the data and a sort."""

    power: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """How much the input norm counts."""

    needs: ClassVar[tuple[type[Statistic], ...]] = (InputNorm,)

    def apply(self, weight: Tensor, observed: InputStatistics) -> None:
        """Prune `weight` [outputs, inputs] in place."""
        score = relative_importance(weight) * observed[InputNorm].value.pow(self.power)
        weight.masked_fill_(~keep_matrix(score, self.sparsity), 0)


def relative_importance(weight: Tensor) -> Tensor:
    """|W_ij| over the sum of its column plus |W_ij| over the sum of its row; 0 where the weight is 0."""
    size = weight.abs()
    least = torch.finfo(size.dtype).tiny  # of a row or column of zeros
    return size / size.sum(dim=0).clamp_min(least) + size / size.sum(dim=1, keepdim=True).clamp_min(least)
