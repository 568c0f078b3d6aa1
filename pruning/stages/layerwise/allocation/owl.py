"""How much each block loses: more where few of its weights are outliers, the same on average.

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


class Outliers:
    """A visit that notes which share of a dense block's |weight| x input norm is above `times` their mean."""

    def __init__(self, times: float) -> None:
        self._times = times

    def __call__(self, view: BlockView) -> Note:
        """Run the block once."""
        start = monotonic()
        linears = view.linears
        with observing(linears, (InputNorm,), "end") as observed:
            view.advance()
        scores = [weight_of(linears[name]).abs() * observed[name][InputNorm].root_mean_square for name in observed]
        return {"outliers": outlier_share(scores, self._times), "seconds": monotonic() - start}


def outlier_share(scores: Sequence[Tensor], times: float) -> float:
    """The share of all `scores` of a block that are above `times` the mean of all."""
    count = sum(score.numel() for score in scores)
    mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / count
    return sum(int((score > times * mean).sum()) for score in scores) / count


def allocate(shares: Sequence[float], sparsity: float, spread: float) -> list[float]:
    """The fraction to remove from each block: `sparsity` on average, least where most are outliers.

    The fractions lie over a range of 2 `spread`; equal shares give equal fractions.
    """
    least, most = min(shares), max(shares)
    kept = [2 * spread * (share - least) / (most - least) if most > least else 0.0 for share in shares]
    mean = sum(kept) / len(kept)
    return [sparsity + mean - one for one in kept]
