"""FLAP: score units by the variance of their inputs, and fold the mean of removed columns into the remaining ones.

An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models, https://arxiv.org/abs/2312.11983,
equations 3 to 5. The authors' code squares the score of attention once more before the mean over a head; the paper does
not, nor does this. The paper puts the mean into a new bias, for which most models' configurations have no field: see
`fold_mean`.
"""

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from torch import Tensor


class FLAP(msgspec.Struct, frozen=True, tag_field="name", tag="flap", forbid_unknown_fields=True):
    """Remove the units that fluctuate least; costs one pass; updates rowwise layers by the removed mean."""

    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean; unused for a layer with a bias."""


def fluctuation(weight: "Tensor", variance: "Tensor", units: int) -> "Tensor":
    """The mean of Var(X_j) * ||W_:,j||^2 over the columns of each unit, [units].

    `weight` is [outputs, inputs], `variance` [inputs]. All units of a layer have one size, so the mean over a head and
    then over its KV group equals the mean over all columns of that group.
    """
    return (variance * weight.double().square().sum(dim=0)).view(units, -1).mean(dim=1)


def fold_mean(weight: "Tensor", gone: "Tensor", mean: "Tensor", inverse: "Tensor") -> None:
    """Zero the columns `gone` of `weight` in place and let the remaining columns reproduce their mean output.

    `weight` is [outputs, inputs], `gone` a mask [inputs]. The removed columns p contributed b = W_p m_p on average,
    with m [inputs] the inputs' `mean`. Without a bias, the nearest substitute is dW = b v^T, where v^T x_k is the best
    prediction of 1 from the kept inputs x_k: v = argmin E(v^T x_k - 1)^2 = E[x_k x_k^T]^-1 m_k, hence dW = W_p m_p
    m_k^T E[x_k x_k^T]^-1, with the damped `inverse`. Where the inputs have no mean, v is near 0; m_k^T / ||m_k||^2
    would restore the mean exactly but adds noise (measured in docs/results/log.md).
    """
    predictor = inverse @ mean[~gone]
    weight[:, ~gone] += (weight[:, gone].double() @ mean[gone]).outer(predictor).to(weight.dtype)
    weight[:, gone] = 0
