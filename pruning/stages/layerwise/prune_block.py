"""Prunes the linear layers of one block with one technique, and writes the block's weights to a file.

A block runs twice per batch: once to observe its inputs with dense weights, once to pass on its pruned outputs. In
sequential order it runs once per group of layers that share an input, only as far as that group, and once to pass on.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import msgspec
from torch import Tensor, nn

from pruning.model.blocks import weight_of
from pruning.model.weights import write_file
from pruning.passes.fisher import OutputFishers
from pruning.passes.gradients import Moments
from pruning.passes.observation import observe, observe_groups
from pruning.passes.statistics import InputStatistics
from pruning.passes.sweep import BlockView, Note
from pruning.stages.block_weights import block_file, naming_weight, stored_tensors, zero_fraction
from pruning.stages.layerwise.correction import Correction
from pruning.stages.team import ALONE, Team
from pruning.techniques.mathematics.losses import layer_loss
from pruning.techniques.technique import Technique


class Gradients(NamedTuple):
    """What a backward pass before the first block gave, if the technique or the objective needs one."""

    moments: Moments | None = None
    fishers: OutputFishers | None = None

    def added(self, observed: InputStatistics, name: str, linear: nn.Module) -> InputStatistics:
        """`observed` with what was found for the layer with the weight `name`."""
        return observed.with_gradients(
            self.moments.of(name, linear) if self.moments else {}, self.fishers.of(name) if self.fishers else None
        )

    @property
    def seconds(self) -> float:
        """The time it took."""
        return sum(part.seconds for part in (self.moments, self.fishers) if part)


NO_GRADIENTS = Gradients()


class PruneBlock:
    """A visit that prunes one block and writes `folder`/block-NNNN.safetensors.

    With more than one of `groups` (see `count_groups`), each group sees the earlier ones pruned. `techniques` holds the
    technique with a matrix's own sparsity, by weight name, where it is not `technique` itself. If a weight is corrected
    before pruning, its loss is relative to the corrected weight.

    The processes of `team` each see their share of the sequences. They add up their statistics, prune the matrices in
    turn, one process each, and send them to the others.
    """

    team: Team = ALONE

    def __init__(
        self,
        technique: Technique,
        folder: Path,
        groups: int = 1,
        techniques: Mapping[str, Technique] | None = None,
        gradients: Gradients = NO_GRADIENTS,
        correction: Correction | None = None,
    ) -> None:
        self._technique = technique
        self._techniques = techniques or {}
        self._folder = folder
        self._gradients = gradients
        self._correction = correction
        self._sequential = groups > 1
        self.runs = groups + 1 if technique.needs or correction else 0
        """Forwards of each block per batch."""

    def __call__(self, view: BlockView) -> Note:
        """Observe, prune, save, and pass on the states; notes each weight's sparsity and loss, and the seconds."""
        start = monotonic()
        linears = view.linears
        tensors: dict[str, Tensor] = {}
        losses: dict[str, Any] = {}
        owners = {name: (view.index + number) % self.team.size for number, name in enumerate(linears)}
        for observed in self._observe(view, linears):
            self._combine(observed)
            made = {name: self._prune(name, linears[name], observed[name]) for name in observed
                    if owners[name] == self.team.rank}  # fmt: skip
            for name in observed:
                sent = self.team.send_out(owners[name], weight_of(linears[name]), made.get(name))
                scales, losses[name] = sent
                tensors |= stored_tensors(name, linears[name], scales)
        if self.team.leads:
            write_file(block_file(self._folder, view.index), tensors)
        if self.runs:
            view.advance()
        sparsity = {name: zero_fraction(weight_of(linear)) for name, linear in linears.items()}
        return {"sparsity": sparsity, "losses": losses, "seconds": monotonic() - start}

    def _combine(self, observed: Mapping[str, InputStatistics]) -> None:
        """Add up the statistics of all processes, once for layers that share them."""
        if self.team.size == 1:
            return
        for statistics in {id(each): each for each in observed.values()}.values():
            statistics.combine(self.team.add_in_order)
        if self._correction:
            self._correction.combine(self.team.add_in_order)

    def _prune(self, name: str, linear: nn.Module, observed: InputStatistics) -> tuple[Tensor | None, dict[str, Any]]:
        """Correct and prune the layer with the weight `name` in place; returns its scales and its loss."""
        technique, weight = self._techniques.get(name, self._technique), weight_of(linear)
        if self._correction:
            self._correction.correct(name, weight, observed, keep_zeros=not technique.sparsity)
        dense = weight.clone()
        with naming_weight(name):
            scales = prune_weight(weight, technique, self._gradients.added(observed, name, linear))
            return scales, msgspec.to_builtins(layer_loss(dense, weight, observed))

    def _observe(self, view: BlockView, linears: Mapping[str, nn.Module]) -> Iterator[dict[str, InputStatistics]]:
        """Yield the input statistics of one group of layers after another; the caller prunes each group in between."""
        if self._correction:
            yield from self._correction.observe(view, self._technique.needs)
        elif self._sequential and self.runs:
            yield from observe_groups(linears, self._technique.needs, view.run)
        else:
            yield observe(view, self._technique.needs)


def prune_weight(weight: Tensor, technique: Technique, observed: InputStatistics) -> Tensor | None:
    """Apply `technique` to `weight` in place and round it to bfloat16, so later blocks see the stored values."""
    scales = technique.apply(weight, observed)
    weight.copy_(weight.bfloat16())
    return scales
