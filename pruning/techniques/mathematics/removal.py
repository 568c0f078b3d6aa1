"""Removes units of columns one at a time; the remaining columns compensate each removal.

In the manner of ZipLM (https://arxiv.org/abs/2302.04089, equations 2 and 3) and SlimGPT
(https://arxiv.org/abs/2412.18110).
"""

import torch
from torch import Tensor


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
