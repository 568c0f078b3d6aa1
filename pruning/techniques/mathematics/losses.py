"""What changing one weight cost its layer's outputs, from the statistics that its technique has observed anyway."""

from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from pruning.errors import ModelRefused
from pruning.passes.statistics import Gram, InputNorm, InputStatistics
from pruning.techniques.admm import layer_error
from server.artifact.checkpoint.lineage import Loss

OUTLIER = 5.0
"""An outlier is above this many times the mean of |W| x input norm, as in OWL."""


def measured(dense: Tensor, weight: Tensor, observed: InputStatistics) -> Loss:
    """The loss of `weight` in place of `dense`, both [outputs, inputs], by the best statistic that was `observed`."""
    if Gram in observed:
        return by_gram(dense, weight, observed[Gram].value)
    if InputNorm in observed:
        return by_diagonal(dense, weight, observed[InputNorm].value.square(), "diagonal")
    return by_diagonal(dense, weight, torch.ones(dense.shape[1]), "weights")


def by_gram(dense: Tensor, weight: Tensor, gram: Tensor) -> Loss:
    """The exact loss on the data of `gram` [inputs, inputs]: tr(D G D^T) / tr(W G W^T) of D = dense - weight."""
    error = _ratio(layer_error(dense - weight, gram), layer_error(dense, gram))
    return _loss(dense, weight, gram.diagonal(), error, "gram", effective_rank(gram))


def by_diagonal(dense: Tensor, weight: Tensor, squares: Tensor, measure: Literal["diagonal", "weights"]) -> Loss:
    """The loss as if the inputs, whose mean squares are `squares` [inputs], were independent of each other."""
    error = _ratio(_energy(dense - weight, squares), _energy(dense, squares))
    return _loss(dense, weight, squares, error, measure, None)


def effective_rank(gram: Tensor) -> float:
    """The participation ratio of the eigenvalues, tr(G)^2 / (n ||G||_F^2): 1 for inputs alike and independent."""
    return _ratio(float(gram.trace().double()) ** 2, len(gram) * float(gram.square().sum(dtype=torch.float64)))


def _loss(
    dense: Tensor,
    weight: Tensor,
    squares: Tensor,
    error: float,
    measure: Literal["gram", "diagonal", "weights"],
    rank: float | None,
) -> Loss:
    """The loss with what explains it; raises ModelRefused where it is beyond float32."""
    if not isfinite(error):
        raise ModelRefused("its weights or inputs are so large that its output error is not finite")
    removed = _ratio(_energy(dense.masked_fill(weight != 0, 0), squares), _energy(dense, squares))
    score = dense.abs() * squares.sqrt()
    outliers = int((score > OUTLIER * score.mean()).sum()) / score.numel()
    return Loss(error=error, measure=measure, removed=removed, outliers=outliers, rank=rank)


def _energy(weight: Tensor, squares: Tensor) -> float:
    """The sum of W_ij^2 x_j^2."""
    return float((weight.square() * squares).sum(dtype=torch.float64))


def _ratio(part: float, whole: float) -> float:
    """`part` of `whole`; 0 for a layer whose outputs are all zero, which has nothing to lose."""
    return part / whole if whole > 0 else 0.0
