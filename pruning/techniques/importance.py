"""Scores of structural units: the Taylor expansion of the loss, or least squares on the inputs of the rowwise layer.

LLM-Pruner: Ma et al., On the Structural Pruning of Large Language Models, https://arxiv.org/abs/2305.11627, equations 3
to 5. Second order in the manner of ZipLM (https://arxiv.org/abs/2302.04089, equations 2 and 3) and SlimGPT
(https://arxiv.org/abs/2412.18110): units go one at a time, and the remaining columns compensate each removal.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from pruning.techniques.fluctuation import FLAP

if TYPE_CHECKING:
    from torch import Tensor


class Taylor(msgspec.Struct, frozen=True, tag_field="name", tag="taylor", forbid_unknown_fields=True):
    """Remove the units that change the loss least; costs one forward and one backward pass, updates no weight."""

    order: Literal["param_first", "param_second", "param_mix", "vectorize"] = "param_first"
    """Score of a weight: |w g|, w E[g^2] w, or |w g - 1/2 w E[g^2] w|; "vectorize" takes |sum of w g| of each row or
    column of a unit instead."""

    @property
    def powers(self) -> tuple[int, ...]:
        """The powers p of the gradient whose means E[g^p] `units` reads."""
        return {"param_second": (2,), "param_mix": (1, 2)}.get(self.order, (1,))

    def units(self, weight: "Tensor", moments: "Mapping[int, Tensor]", units: int) -> "Tensor":
        """The importance [units] from `weight` [units * size, inputs]; a rowwise layer is passed transposed."""
        if self.order == "vectorize":
            rows = (weight * moments[1]).sum(dim=1).abs()
        else:
            rows = self._weights(weight, moments).sum(dim=1)
        return rows.view(units, -1).sum(dim=1)

    def _weights(self, weight: "Tensor", moments: "Mapping[int, Tensor]") -> "Tensor":
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
