"""Least squares on a fixed sparsity pattern, by conjugate gradients over all rows of a weight at once."""

import torch
from torch import Tensor


def refit_kept(sparse: Tensor, dense: Tensor, matrix: Tensor, steps: int, outputs: Tensor | None = None) -> Tensor:
    """Refit the non-zeros of `sparse` to `dense`: the W of that pattern with least tr(F (dense - W) G (dense - W)^T).

    ALPS (https://arxiv.org/abs/2406.07831), algorithm 2. `sparse` and `dense` are [outputs, inputs], `matrix` is the
    damped Gram matrix G [inputs, inputs], `outputs` the damped Fisher matrix F [outputs, outputs]; without it F is the
    identity. `steps` conjugate-gradient steps start from `sparse`; residuals are masked, so zeros stay zero.
    """
    W, removed = sparse.clone(), sparse == 0
    alone = [1] if outputs is None else [0, 1]  # rows are problems of their own unless F joins them

    def image_of(change: Tensor) -> Tensor:
        image = change @ matrix if outputs is None else outputs @ change @ matrix
        return image.masked_fill_(removed, 0)

    residual = image_of(dense - W)
    direction, square = residual.clone(), residual.square().sum(dim=alone, keepdim=True)
    least = torch.finfo(W.dtype).tiny  # avoids 0 / 0 in rows already solved
    for _ in range(steps):
        image = image_of(direction)
        step = square / (direction * image).sum(dim=alone, keepdim=True).clamp_min(least)
        W += step * direction
        residual -= step * image
        last, square = square, residual.square().sum(dim=alone, keepdim=True)
        direction = residual + square / last.clamp_min(least) * direction
    return W
