"""Which units may go by how much they fluctuate, and how their mean lives on in the columns that stay.

FLAP: An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models,
https://arxiv.org/abs/2312.11983, equations 3 to 5. Its code squares the score of attention once more before it takes
the mean of a head; the paper does not, and neither does this. The paper gives the mean to a new bias, which the
configurations of most models have no place for: see `fold`.
"""

from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor


class FLAP(msgspec.Struct, frozen=True, tag_field="name", tag="flap", forbid_unknown_fields=True):
    """Costs a pass over the data; changes the rowwise layers alone, by the mean of what is removed."""

    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean; a layer with a bias needs none."""


def fluctuation(weight: Tensor, variance: Tensor, units: int) -> Tensor:
    """Var(X_j) * ||W_:,j||^2 of each column, the mean of it over the columns of each unit, [units].

    `weight` is [outputs, inputs], `variance` [inputs]. Units of a layer are of one size, so that a head's mean and then
    its KV group's is the mean over all columns of that group.
    """
    return (variance * weight.double().square().sum(dim=0)).view(units, -1).mean(dim=1)


def fold(weight: Tensor, gone: Tensor, mean: Tensor, inverse: Tensor) -> None:
    """Remove the columns `gone`, a mask [inputs], of `weight` [outputs, inputs] in place; the rest give their mean.

    The removed columns p gave b = W_p m_p on average, where m [inputs] is the inputs' `mean`. A bias would add it; what
    comes nearest to that without one is dW = b v^T, where v^T x_k is the best prediction of 1 from the inputs x_k that
    stay: v = argmin E(v^T x_k - 1)^2 = E[x_k x_k^T]^-1 m_k, hence dW = W_p m_p m_k^T E[x_k x_k^T]^-1, with that
    `inverse` damped. Inputs without a mean predict nothing, and v is then near 0, where m_k^T / ||m_k||^2, which gives
    back the mean exactly, adds noise (measured in docs/results/log.md).
    """
    predictor = inverse @ mean[~gone]
    weight[:, ~gone] += torch.outer(weight[:, gone].double() @ mean[gone], predictor).to(weight.dtype)
    weight[:, gone] = 0
