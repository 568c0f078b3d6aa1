"""How often each domain of the data is read: more often where the loss is still above its reference.

Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, algorithm 1. Its official code omits the max with zero, so
that domains which are ahead lose weight at once; this is the paper's form, without the code's uniform share of 1e-4.
"""

from torch import Tensor


def reweigh(weights: Tensor, loss: Tensor, reference: Tensor) -> Tensor:
    """The new weights [domains], which sum to 1, from the old ones and each domain's held-out loss and reference."""
    grown = weights * (loss - reference).clamp_min(0).exp()
    return grown / grown.sum()
