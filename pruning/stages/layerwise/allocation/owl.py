"""OWL: lower sparsity for blocks with more outliers, with the same mean over the blocks.

Yin et al., Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity,
https://arxiv.org/abs/2310.05175.
"""

from collections.abc import Sequence
from time import monotonic

import torch
from torch import Tensor

from pruning.model.blocks import weight_of
from pruning.passes.observation import observing
from pruning.passes.statistics import InputNorm
from pruning.passes.sweep import BlockView, Note


class MeasureOutliers:
    """A visit that notes the share of a dense block's scores, |weight| x input norm, above `times` their mean."""

    def __init__(self, times: float) -> None:
        self._times = times

    def __call__(self, view: BlockView) -> Note:
        """Run the block once; notes the share of outliers and the seconds."""
        start = monotonic()
        linears = view.linears
        with observing(linears, (InputNorm,), "end") as observed:
            view.advance()
        scores = [weight_of(linears[name]).abs() * observed[name][InputNorm].root_mean_square for name in observed]
        return {"outliers": outlier_share(scores, self._times), "seconds": monotonic() - start}


def outlier_share(scores: Sequence[Tensor], times: float) -> float:
    """The share of all scores of a block that exceed `times` their mean."""
    count = sum(score.numel() for score in scores)
    mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / count
    return sum(int((score > times * mean).sum()) for score in scores) / count


def owl_sparsities(shares: Sequence[float], sparsity: float, spread: float) -> list[float]:
    """The fraction to remove from each block: `sparsity` on average, least where the share of outliers is largest.

    The fractions span a range of 2 `spread`; equal shares give equal fractions.
    """
    least, most = min(shares), max(shares)
    kept = [2 * spread * (share - least) / (most - least) if most > least else 0.0 for share in shares]
    mean = sum(kept) / len(kept)
    return [sparsity + mean - one for one in kept]
