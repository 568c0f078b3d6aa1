"""Which units of a group may go: by the loss's Taylor series, or by least squares on what the rowwise layer reads.

LLM-Pruner: Ma et al., On the Structural Pruning of Large Language Models, https://arxiv.org/abs/2305.11627, equations
3 to 5. Second order in the manner of ZipLM (https://arxiv.org/abs/2302.04089, equations 2 and 3) and SlimGPT
(https://arxiv.org/abs/2412.18110): one unit at a time, each removal made up for by the columns that stay.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from pruning.techniques.fluctuation import FLAP


class Taylor(msgspec.Struct, frozen=True, tag_field="name", tag="taylor", forbid_unknown_fields=True):
    """Costs a pass forward and one backward; updates no weight."""

    order: Literal["param_first", "param_second", "param_mix", "vectorize"] = "param_first"
    """|w g|, w E[g^2] w, or |w g - 1/2 w E[g^2] w| of each weight; or |sum of w g| of each row or column of a unit."""

    @property
    def powers(self) -> tuple[int, ...]:
        """The moments of the gradients that are needed."""
        return {"param_second": (2,), "param_mix": (1, 2)}.get(self.order, (1,))

    def units(self, weight: Tensor, moments: Mapping[int, Tensor], units: int) -> Tensor:
        """The importance [units] that `weight` [units * size, inputs] adds; a rowwise layer comes transposed."""
        if self.order == "vectorize":
            rows = (weight * moments[1]).sum(dim=1).abs()
        else:
            rows = self._weights(weight, moments).sum(dim=1)
        return rows.view(units, -1).sum(dim=1)

    def _weights(self, weight: Tensor, moments: Mapping[int, Tensor]) -> Tensor:
        """The importance of each weight alone."""
        if self.order == "param_first":
            return (weight * moments[1]).abs()
        second = weight * moments[2] * weight
        return second if self.order == "param_second" else (weight * moments[1] - second / 2).abs()


class SecondOrder(msgspec.Struct, frozen=True, tag_field="name", tag="second_order", forbid_unknown_fields=True):
    """Costs a pass over the data, and the inverse of one Gram matrix for each rowwise layer."""

    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean."""


AnyImportance = Taylor | SecondOrder | FLAP


def remove(weight: Tensor, inverse: Tensor, units: int, count: int) -> Tensor:
    """Remove `count` of the `units` of columns of `weight` [outputs, inputs] in place; returns those that stay.

    `inverse` [inputs, inputs], float64, is that of the Gram matrix, and is used up. Each time the unit S goes whose
    sum over rows of w_S ([H^-1]_SS)^-1 w_S is least; w -= w_S ([H^-1]_SS)^-1 H^-1_S makes up for it. Of equals the
    lower goes first.
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
    """([H^-1]_SS)^-1 of every unit S, [units, size, size]; of no meaning for those that are gone."""
    blocks = inverse.view(len(alive), size, len(alive), size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()
    blocks[~alive] = torch.eye(size, dtype=inverse.dtype)
    return 1 / blocks if size == 1 else torch.linalg.inv(blocks)


def _costs(W: Tensor, curvature: Tensor) -> Tensor:
    """The rise of the squared error [units] that the removal of each unit alone would cost."""
    units, size, _ = curvature.shape
    if size == 1:
        return W.square().sum(dim=0) * curvature[:, 0, 0]
    parts = W.view(len(W), units, size).transpose(0, 1)  # [units, outputs, size]
    return ((parts @ curvature) * parts).sum(dim=(1, 2))
