"""The relative output error of a changed weight, from the statistics that its technique observed anyway."""

from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from pruning.errors import ModelRefused
from pruning.passes.statistics import Gram, InputNorm, InputStatistics
from server.artifact.checkpoint.lineage import Loss

OUTLIER = 5.0
"""A weight is an outlier if |W| x input norm is above this many times the mean, as in OWL."""


def layer_loss(dense: Tensor, weight: Tensor, observed: InputStatistics) -> Loss:
    """The loss of replacing `dense` by `weight`, both [outputs, inputs], by the best statistic in `observed`."""
    if Gram in observed:
        return gram_loss(dense, weight, observed[Gram].value)
    if InputNorm in observed:
        return diagonal_loss(dense, weight, observed[InputNorm].value.square(), "diagonal")
    return diagonal_loss(dense, weight, torch.ones(dense.shape[1]), "weights")


def gram_loss(dense: Tensor, weight: Tensor, gram: Tensor) -> Loss:
    """The exact loss on the calibration data: tr(D G D^T) / tr(W G W^T), D = dense - weight, G [inputs, inputs]."""
    error = _ratio(layer_error(dense - weight, gram), layer_error(dense, gram))
    return _loss(dense, weight, gram.diagonal(), error, "gram", effective_rank(gram))


def diagonal_loss(dense: Tensor, weight: Tensor, squares: Tensor, measure: Literal["diagonal", "weights"]) -> Loss:
    """The loss as if inputs were uncorrelated; `squares` [inputs] are their mean squares."""
    error = _ratio(_energy(dense - weight, squares), _energy(dense, squares))
    return _loss(dense, weight, squares, error, measure, None)


def layer_error(difference: Tensor, gram: Tensor, fisher: Tensor | None = None) -> float:
    """The squared output error tr(E G E^T) of a weight difference E [outputs, inputs]; G is [inputs, inputs].

    With the Fisher matrix F [outputs, outputs] of the outputs, tr(F E G E^T).
    """
    weighed = difference if fisher is None else fisher @ difference
    return float(((weighed @ gram) * difference).sum(dtype=torch.float64))


def effective_rank(gram: Tensor) -> float:
    """The participation ratio of the eigenvalues, tr(G)^2 / (n ||G||_F^2): 1 for uncorrelated inputs of equal norm."""
    return _ratio(float(gram.trace().double()) ** 2, len(gram) * float(gram.square().sum(dtype=torch.float64)))


def _loss(
    dense: Tensor,
    weight: Tensor,
    squares: Tensor,
    error: float,
    measure: Literal["gram", "diagonal", "weights"],
    rank: float | None,
) -> Loss:
    """The lineage's record of the loss, with its explanation; raises ModelRefused if the error is not finite."""
    if not isfinite(error):
        raise ModelRefused("its weights or inputs are so large that its output error is not finite")
    removed = _ratio(_energy(dense.masked_fill(weight != 0, 0), squares), _energy(dense, squares))
    score = dense.abs() * squares.sqrt()
    outliers = int((score > OUTLIER * score.mean()).sum()) / score.numel()
    return Loss(error=error, measure=measure, removed=removed, outliers=outliers, rank=rank)


def _energy(weight: Tensor, squares: Tensor) -> float:
    """The sum of W_ij^2 x_j^2, with x_j^2 in `squares` [inputs]."""
    return float((weight.square() * squares).sum(dtype=torch.float64))


def _ratio(part: float, whole: float) -> float:
    """`part` / `whole`; 0 if `whole` is 0, as a layer with zero outputs has nothing to lose."""
    return part / whole if whole > 0 else 0.0
