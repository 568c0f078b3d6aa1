"""SparseSwaps: start from a simple mask and exchange a kept for a removed weight while that lowers the layer's error.

Zimmer et al., SparseSwaps: Tractable LLM Pruning Mask Refinement at Scale, https://arxiv.org/abs/2512.10922. Weights
keep their values. An exchange stays within its row or N:M group, so the counts never change.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta

from pruning.techniques.mathematics.sparsity import nm_pattern
from pruning.techniques.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.passes.statistics import InputStatistics


class Swaps(Technique, frozen=True):
    """Refine a Wanda or RIA mask; a fraction costs `rounds` x outputs x inputs^2 / 4 comparisons, N:M far fewer."""

    start: Literal["wanda", "ria"] = "wanda"
    """The mask to start from."""
    rounds: Annotated[int, Meta(ge=0)] = 30
    """Most rounds; in each, every row or N:M group makes its best exchange."""

    observes: ClassVar[tuple[str, ...]] = ("Gram",)

    def apply(self, weight: "Tensor", observed: "InputStatistics") -> None:
        """Prune `weight` [outputs, inputs] in place."""
        from pruning.passes.statistics import Gram
        from pruning.techniques.mathematics.exchanges import swap

        gram = observed[Gram].value
        keep = self._first_mask(weight, gram.diagonal().sqrt())
        groups = nm_pattern(self.sparsity)
        swap(weight, keep, gram, groups.columns if groups else weight.shape[1], self.rounds)
        weight.masked_fill_(~keep, 0)

    def _first_mask(self, weight: "Tensor", norm: "Tensor") -> "Tensor":
        """Wanda's or RIA's keep mask [outputs, inputs]; `norm` [inputs] is the input norm up to a constant factor."""
        from pruning.techniques.mathematics.patterns import keep_matrix, keep_rows
        from pruning.techniques.mathematics.relative_importance import relative_importance

        if self.start == "wanda":
            return keep_rows(weight.abs() * norm, self.sparsity)
        return keep_matrix(relative_importance(weight) * norm.sqrt(), self.sparsity)
