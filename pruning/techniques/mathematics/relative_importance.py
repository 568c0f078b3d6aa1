"""RIA's relative importance: the size of each weight beside its row's sum and its column's."""

import torch
from torch import Tensor


def relative_importance(weight: Tensor) -> Tensor:
    """|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij| of `weight`, [outputs, inputs]; 0 where the weight is 0."""
    size = weight.abs()
    least = torch.finfo(size.dtype).tiny  # of a row or column of zeros
    return size / size.sum(dim=0).clamp_min(least) + size / size.sum(dim=1, keepdim=True).clamp_min(least)
