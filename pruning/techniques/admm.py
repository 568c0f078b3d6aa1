"""ADMM pruning (ALPS): alternate between the dense optimum and the sparse pattern, then refit the kept weights.

Meng et al., ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models,
https://arxiv.org/abs/2406.07831, algorithms 1 and 2: minimises the layer's squared output error over mask and weights.
Inputs are scaled to unit norm, which makes the diagonal the preconditioner of the refit. Deliberate differences: (1)
the result is kept only if its layer error is below SparseGPT's; (2) the penalty grows a little after every iteration,
not in steps after every third.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from pruning.techniques.sparsegpt import SparseGPT
from pruning.techniques.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.passes.statistics import InputStatistics, Spectrum


class ADMM(Technique, frozen=True):
    """Costs one SparseGPT, an eigendecomposition per input, and `2 iterations + refits` Gram matrix products."""

    damping: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Added to the diagonal of the Gram matrix, in units of its mean; 0.01 is SparseGPT's."""
    penalty: Annotated[float, Meta(gt=0)] = 0.1
    """The initial penalty rho."""
    growth: Annotated[float, Meta(ge=1)] = 1.1
    """Factor of rho after each iteration; nearer to 1 is slower and finds slightly better masks."""
    iterations: Annotated[int, Meta(ge=1)] = 60
    """Most iterations; they end early once the mask no longer changes."""
    refits: Annotated[int, Meta(ge=0)] = 10
    """Conjugate-gradient steps that refit the kept weights on the final mask."""

    sees_loss: ClassVar[bool] = True
    observes: ClassVar[tuple[str, ...]] = ("Gram",)

    def apply(self, weight: "Tensor", observed: "InputStatistics") -> None:
        """Prune `weight` [outputs, inputs] in place and refit the rest; the layer error is never above SparseGPT's."""
        from pruning.passes.statistics import Gram, Spectrum
        from pruning.techniques.mathematics.columns import FISHER_DAMPING
        from pruning.techniques.mathematics.conjugate_gradient import refit_kept
        from pruning.techniques.mathematics.losses import layer_error

        start = weight.clone()
        SparseGPT(self.sparsity, damping=self.damping).apply(start, observed)
        inputs, outputs = observed[Gram].spectrum(self.damping), None
        dense = (weight * inputs.scale).masked_fill_(observed[Gram].dead, 0)
        if observed.outputs is not None:
            outputs = Spectrum.of(observed.outputs.clone(), FISHER_DAMPING)
            dense *= outputs.scale[:, None]
        found = self._pattern(dense, inputs, outputs)
        found = refit_kept(found, dense, inputs.matrix, self.refits, outputs.matrix if outputs else None)
        found /= inputs.scale
        if outputs:
            found /= outputs.scale[:, None]
        gram = observed[Gram].value
        weight.copy_(min(start, found, key=lambda result: layer_error(result - weight, gram, observed.outputs)))

    def _pattern(self, dense: "Tensor", inputs: "Spectrum", outputs: "Spectrum | None" = None) -> "Tensor":
        """Algorithm 1: the sparse iterate D [outputs, inputs], in scaled coordinates, once its mask is stable.

        With the spectrum of the outputs' Fisher matrix, the Hessian is its Kronecker product with the inputs'.
        """
        import torch

        from pruning.techniques.mathematics.patterns import keep_matrix

        target = dense @ inputs.matrix if outputs is None else outputs.matrix @ dense @ inputs.matrix
        curvature = inputs.values if outputs is None else outputs.values[:, None] * inputs.values
        D, dual, rho = dense, torch.zeros_like(dense), self.penalty
        keep = torch.ones_like(dense, dtype=torch.bool)
        for _ in range(self.iterations):
            rotated = (target - dual + rho * D) @ inputs.vectors
            if outputs is None:
                W = rotated / (curvature + rho) @ inputs.vectors.T
            else:
                W = outputs.vectors @ ((outputs.vectors.T @ rotated) / (curvature + rho)) @ inputs.vectors.T
            W += dual / rho
            last, keep = keep, keep_matrix(W.abs(), self.sparsity)
            D = W.masked_fill(~keep, 0)
            dual = (W - D) * rho
            if torch.equal(keep, last):
                break
            rho *= self.growth
        return D
