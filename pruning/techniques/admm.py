"""ADMM: find which weights to keep by alternating between the dense optimum and the pattern, then refit those exactly.

Meng et al., ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models,
https://arxiv.org/abs/2406.07831, algorithms 1 and 2, on inputs scaled to unit norm, which makes the diagonal the
preconditioner of the refit. Deliberate differences: (1) the result is kept only where its layer error is below
SparseGPT's; (2) the penalty grows a little after every iteration, not in steps after every third.
"""

from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from pruning.passes.statistics import Gram, InputStatistics, Spectrum, Statistic
from pruning.techniques.mathematics.patterns import keep_matrix
from pruning.techniques.sparsegpt import SparseGPT
from pruning.techniques.technique import Technique


class ADMM(Technique, frozen=True):
    """Costs SparseGPT, an eigendecomposition for each input, and `2 iterations + refits` products with its matrix."""

    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean."""
    penalty: Annotated[float, Meta(gt=0)] = 0.1
    """The first rho."""
    growth: Annotated[float, Meta(ge=1)] = 1.1
    """The factor of rho after each iteration: nearer to 1 takes longer and finds a little better patterns."""
    iterations: Annotated[int, Meta(ge=1)] = 60
    """At most; they end once the pattern stays."""
    refits: Annotated[int, Meta(ge=0)] = 10
    """Conjugate-gradient steps on the weights that stay."""

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    def apply(self, weight: Tensor, observed: InputStatistics) -> None:
        """Prune `weight` [outputs, inputs] in place and update what stays; never worse than SparseGPT's result."""
        start = weight.clone()
        SparseGPT(self.sparsity, damping=self.damping).apply(start, observed)
        spectrum = observed[Gram].spectrum(self.damping)
        dense = (weight * spectrum.scale).masked_fill_(observed[Gram].dead, 0)
        found = self._pattern(dense, spectrum)
        found = refit(found, dense, spectrum.matrix, self.refits) / spectrum.scale
        gram = observed[Gram].value
        weight.copy_(min(start, found, key=lambda result: layer_error(result - weight, gram)))

    def _pattern(self, dense: Tensor, spectrum: Spectrum) -> Tensor:
        """Algorithm 1: the sparse iterate D [outputs, inputs] once its pattern stays, in scaled coordinates."""
        _, values, vectors = spectrum
        target = dense @ spectrum.matrix
        D, dual, rho = dense, torch.zeros_like(dense), self.penalty
        keep = torch.ones_like(dense, dtype=torch.bool)
        for _ in range(self.iterations):
            W = (target - dual + rho * D) @ vectors / (values + rho) @ vectors.T
            W += dual / rho
            last, keep = keep, keep_matrix(W.abs(), self.sparsity)
            D = W.masked_fill(~keep, 0)
            dual = (W - D) * rho
            if torch.equal(keep, last):
                break
            rho *= self.growth
        return D


def refit(sparse: Tensor, dense: Tensor, matrix: Tensor, steps: int) -> Tensor:
    """Algorithm 2: conjugate-gradient steps from `sparse` to the W of its pattern that minimises its layer error.

    All rows [outputs, inputs] at once; residuals are masked to the pattern, so what is zero stays zero.
    """
    W, removed = sparse.clone(), sparse == 0
    residual = ((dense - W) @ matrix).masked_fill_(removed, 0)
    direction, square = residual.clone(), residual.square().sum(dim=1, keepdim=True)
    least = torch.finfo(W.dtype).tiny  # of a row that is solved already
    for _ in range(steps):
        image = (direction @ matrix).masked_fill_(removed, 0)
        step = square / (direction * image).sum(dim=1, keepdim=True).clamp_min(least)
        W += step * direction
        residual -= step * image
        last, square = square, residual.square().sum(dim=1, keepdim=True)
        direction = residual + square / last.clamp_min(least) * direction
    return W


def layer_error(difference: Tensor, gram: Tensor) -> float:
    """The squared error tr(E G E^T) of the layer's outputs for a difference E [outputs, inputs] of its weights."""
    return float(((difference @ gram) * difference).sum(dtype=torch.float64))
