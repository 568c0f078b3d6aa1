"""Scores of structural units: the Taylor expansion of the loss, or least squares on the inputs of the rowwise layer.

LLM-Pruner: Ma et al., On the Structural Pruning of Large Language Models, https://arxiv.org/abs/2305.11627, equations 3
to 5. Second order in the manner of ZipLM (https://arxiv.org/abs/2302.04089, equations 2 and 3) and SlimGPT
(https://arxiv.org/abs/2412.18110): units go one at a time, and the remaining columns compensate each removal.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from pruning.techniques.fluctuation import FLAP


class Taylor(msgspec.Struct, frozen=True, tag_field="name", tag="taylor", forbid_unknown_fields=True):
    """Remove the units that change the loss least; costs one forward and one backward pass, updates no weight."""

    order: Literal["param_first", "param_second", "param_mix", "vectorize"] = "param_first"
    """Score of a weight: |w g|, w E[g^2] w, or |w g - 1/2 w E[g^2] w|; "vectorize" takes |sum of w g| of each row or
    column of a unit instead."""

    @property
    def powers(self) -> tuple[int, ...]:
        """The powers p of the gradient whose means E[g^p] `units` reads."""
        return {"param_second": (2,), "param_mix": (1, 2)}.get(self.order, (1,))

    def units(self, weight: Tensor, moments: Mapping[int, Tensor], units: int) -> Tensor:
        """The importance [units] from `weight` [units * size, inputs]; a rowwise layer is passed transposed."""
        if self.order == "vectorize":
            rows = (weight * moments[1]).sum(dim=1).abs()
        else:
            rows = self._weights(weight, moments).sum(dim=1)
        return rows.view(units, -1).sum(dim=1)

    def _weights(self, weight: Tensor, moments: Mapping[int, Tensor]) -> Tensor:
        """The importance of each weight alone, [units * size, inputs]."""
        if self.order == "param_first":
            return (weight * moments[1]).abs()
        second = weight * moments[2] * weight
        return second if self.order == "param_second" else (weight * moments[1] - second / 2).abs()


class SecondOrder(msgspec.Struct, frozen=True, tag_field="name", tag="second_order", forbid_unknown_fields=True):
    """Remove the units whose removal costs the least squared output error; costs one pass and one inverse a layer."""

    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean; 0.01 is SparseGPT's."""


AnyImportance = Taylor | SecondOrder | FLAP


def remove_units(weight: Tensor, inverse: Tensor, units: int, count: int) -> Tensor:
    """Remove `count` of the `units` of columns of `weight` [outputs, inputs] in place; returns the remaining units [n].

    `inverse` [inputs, inputs], float64, is the inverse Gram matrix H^-1, and is overwritten. Each step removes the unit
    S with the least sum over rows of w_S ([H^-1]_SS)^-1 w_S, the lowest of equals, and compensates by w -= w_S
    ([H^-1]_SS)^-1 H^-1_S.
    """
    W, size = weight.double(), weight.shape[1] // units
    alive = torch.ones(units, dtype=torch.bool)
    for _ in range(count):
        curvature = _curvature(inverse, alive, size)
        unit = int(_costs(W, curvature).masked_fill_(~alive, torch.inf).argmin())
        columns = slice(unit * size, (unit + 1) * size)
        update = curvature[unit] @ inverse[columns]  # [size, inputs]
        W.addmm_(W[:, columns].clone(), update, alpha=-1)
        inverse.addmm_(inverse[:, columns].clone(), update, alpha=-1)
        alive[unit] = False
        W[:, columns] = 0  # exactly
        inverse[columns] = 0
        inverse[:, columns] = 0
    weight.copy_(W)
    return alive.nonzero()[:, 0]


def _curvature(inverse: Tensor, alive: Tensor, size: int) -> Tensor:
    """([H^-1]_SS)^-1 of every unit S, [units, size, size]; meaningless for removed units."""
    blocks = inverse.view(len(alive), size, len(alive), size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()
    blocks[~alive] = torch.eye(size, dtype=inverse.dtype)
    return 1 / blocks if size == 1 else torch.linalg.inv(blocks)


def _costs(W: Tensor, curvature: Tensor) -> Tensor:
    """The rise of the squared output error from removing each unit alone, [units]."""
    units, size, _ = curvature.shape
    if size == 1:
        return W.square().sum(dim=0) * curvature[:, 0, 0]
    parts = W.view(len(W), units, size).transpose(0, 1)  # [units, outputs, size]
    return ((parts @ curvature) * parts).sum(dim=(1, 2))
