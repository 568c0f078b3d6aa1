"""Prunes every linear layer of one block at a time with one technique, and writes each block's weights to a file.

A block runs twice for each batch: to observe its inputs with dense weights, and to pass on its pruned outputs. In
sequential order it runs once for each group of linears that share an input, as far as that group, and to pass on.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.blocks import weight_of
from pruning.model.weights import write_file
from pruning.passes.gradients import Moments
from pruning.passes.observation import observe, observe_groups
from pruning.passes.statistics import InputStatistics
from pruning.passes.sweep import BlockView, Note
from pruning.stages.layerwise.correction import Correction
from pruning.techniques.mathematics.losses import measured
from pruning.techniques.technique import Technique
from server.artifact.checkpoint.lineage import Loss


class PruneBlock:
    """A visit that applies `technique` and leaves `folder`/block-NNNN.safetensors behind.

    With more `groups` than one, as counted by `count_groups`, each sees those before it pruned. `techniques`, where
    given, are the same technique with another sparsity for each block. The loss of a weight that was corrected first is
    measured from the corrected one.
    """

    def __init__(
        self,
        technique: Technique,
        folder: Path,
        groups: int = 1,
        techniques: Sequence[Technique] = (),
        moments: Moments | None = None,
        correction: Correction | None = None,
    ) -> None:
        self._technique = technique
        self._techniques = techniques
        self._folder = folder
        self._moments = moments
        self._correction = correction
        self._sequential = groups > 1
        self.runs = groups + 1 if technique.needs or correction else 0
        """Forwards of each block and batch."""

    def __call__(self, view: BlockView) -> Note:
        """Observe, prune, save, and pass on the states; notes the sparsity and loss of each weight and the seconds."""
        start = monotonic()
        linears = view.linears
        technique = self._techniques[view.index] if self._techniques else self._technique
        tensors: dict[str, Tensor] = {}
        losses: dict[str, Any] = {}
        for observed in self._observe(view, linears):
            for name in observed:
                moments = self._moments.of(name, linears[name]) if self._moments else {}
                weight = weight_of(linears[name])
                if self._correction:
                    self._correction.correct(name, weight, observed[name], keep_zeros=not technique.sparsity)
                dense = weight.clone()
                with naming(name):
                    scales = prune(weight, technique, observed[name].with_moments(moments))
                    losses[name] = msgspec.to_builtins(measured(dense, weight, observed[name]))
                tensors |= stored(name, linears[name], scales)
        write_file(block_file(self._folder, view.index), tensors)
        if self.runs:
            view.advance()
        sparsity = {name: zeros(weight_of(linear)) for name, linear in linears.items()}
        return {"sparsity": sparsity, "losses": losses, "seconds": monotonic() - start}

    def _observe(self, view: BlockView, linears: Mapping[str, nn.Module]) -> Iterator[dict[str, InputStatistics]]:
        """The statistics of the layers that are to be pruned next."""
        if self._correction:
            yield from self._correction.observe(view, self._technique.needs)
        elif self._sequential and self.runs:
            yield from observe_groups(linears, self._technique.needs, view.run)
        else:
            yield observe(view, self._technique.needs)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say in a refusal which weight it is about."""
    try:
        yield
    except ModelRefused as error:
        raise ModelRefused(f"{name}: {error.message}") from error


def block_file(folder: Path, index: int) -> Path:
    """Where the pruned weights of block `index` lie."""
    return folder / f"block-{index:04}.safetensors"


def prune(weight: Tensor, technique: Technique, observed: InputStatistics) -> Tensor | None:
    """Apply `technique` to `weight` in place and round it to what is stored, so that later blocks see just that."""
    scales = technique.apply(weight, observed)
    weight.copy_(weight.bfloat16())
    return scales


def stored(name: str, linear: nn.Module, scales: Tensor | None) -> dict[str, Tensor]:
    """What is written of one layer: its weight and, where it is quantised, the scales, turned as the weight is."""
    weight = {name: linear.get_parameter("weight").data.bfloat16()}
    if scales is None:
        return weight
    return weight | {f"{name}.scales": scales if isinstance(linear, nn.Linear) else scales.T}


def losses_in(notes: Sequence[Note]) -> dict[str, Loss]:
    """The losses that the visits of blocks have noted."""
    return {name: msgspec.convert(value, Loss) for note in notes for name, value in note.get("losses", {}).items()}


def zeros(weight: Tensor) -> float:
    """The fraction of exact zeros."""
    return 1 - int(torch.count_nonzero(weight)) / weight.numel()
