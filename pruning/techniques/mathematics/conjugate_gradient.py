"""Least squares on a fixed sparsity pattern, by conjugate gradients over all rows of a weight at once."""

import torch
from torch import Tensor


def refit_kept(sparse: Tensor, dense: Tensor, matrix: Tensor, steps: int) -> Tensor:
    """Refit the non-zeros of `sparse` to `dense`: the W of that pattern with least tr((dense - W) G (dense - W)^T).

    ALPS (https://arxiv.org/abs/2406.07831), algorithm 2. `sparse` and `dense` are [outputs, inputs], `matrix` is the
    damped Gram matrix G [inputs, inputs]. `steps` conjugate-gradient steps start from `sparse`; residuals are masked,
    so zeros stay zero.
    """
    W, removed = sparse.clone(), sparse == 0
    residual = ((dense - W) @ matrix).masked_fill_(removed, 0)
    direction, square = residual.clone(), residual.square().sum(dim=1, keepdim=True)
    least = torch.finfo(W.dtype).tiny  # avoids 0 / 0 in rows already solved
    for _ in range(steps):
        image = (direction @ matrix).masked_fill_(removed, 0)
        step = square / (direction * image).sum(dim=1, keepdim=True).clamp_min(least)
        W += step * direction
        residual -= step * image
        last, square = square, residual.square().sum(dim=1, keepdim=True)
        direction = residual + square / last.clamp_min(least) * direction
    return W
