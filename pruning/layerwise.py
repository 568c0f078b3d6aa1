"""Prunes every linear layer of one block at a time with one technique, and writes each block's weights to a file.

A block runs twice for each batch: to observe its inputs with dense weights, and to pass on its pruned outputs.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from pruning.calibration import BlockView, Note
from pruning.errors import ModelRefused
from pruning.model import weight_of
from pruning.recipe import Layerwise
from pruning.stage import Model, Place, seconds
from pruning.statistics import Statistic
from pruning.technique import Observed, Technique
from pruning.weights import Overlay, parameters, write_file
from server.checkpoint.lineage import Step


def apply(stage: Layerwise, model: Model, place: Place) -> tuple[Model, Step]:
    """Prune every linear layer of every block; the pruned weights lie over the model's source."""
    blocks = place.blocks(model)
    visit = PruneBlock(stage.technique, place.folder)
    notes = place.sweep(blocks).visit(visit, "pruning", visit.runs)
    source = Overlay(model.source, [block_file(place.folder, index) for index in range(len(blocks))])
    options = msgspec.to_builtins(stage.technique)
    step = Step(
        technique=options.pop("name"),
        options=options,
        sparsity={name: value for note in notes for name, value in note["sparsity"].items()},
        seconds=seconds(notes),
        parameters=parameters(source)[0],
    )
    return Model(model.config, source), step


class PruneBlock:
    """A visit that applies `technique` and leaves `folder`/block-NNNN.safetensors behind."""

    def __init__(self, technique: Technique, folder: Path) -> None:
        self._technique = technique
        self._folder = folder
        self.runs = 2 if technique.needs else 0
        """Forwards of each block and batch."""

    def __call__(self, view: BlockView) -> Note:
        """Observe, prune, save, and pass on the states; notes the sparsity of each weight and the seconds."""
        start = monotonic()
        linears = view.linears
        observed = self._observe(view, linears)
        for name, linear in linears.items():
            prune(weight_of(linear), self._technique, observed[name])
        tensors = {name: linear.get_parameter("weight").data.bfloat16() for name, linear in linears.items()}
        write_file(block_file(self._folder, view.index), tensors)
        if self.runs:
            view.advance()
        sparsity = {name: _zeros(weight_of(linear)) for name, linear in linears.items()}
        return {"sparsity": sparsity, "seconds": monotonic() - start}

    def _observe(self, view: BlockView, linears: Mapping[str, nn.Module]) -> dict[str, Observed]:
        """The statistics of each layer; raises ModelRefused for a layer that the data never reaches."""
        if not self.runs:
            return {name: Observed((), weight_of(linear).shape[1]) for name, linear in linears.items()}
        with observing(linears, self._technique.needs) as observed:
            view.run()
        for name in linears:
            if name not in observed:
                raise ModelRefused(f"{name} is never reached by the calibration data, so it cannot be pruned")
        return observed


def block_file(folder: Path, index: int) -> Path:
    """Where the pruned weights of block `index` lie."""
    return folder / f"block-{index:04}.safetensors"


def prune(weight: Tensor, technique: Technique, observed: Observed) -> None:
    """Apply `technique` to `weight` in place and round it to what is stored, so that later blocks see just that."""
    technique.apply(weight, observed)
    weight.copy_(weight.bfloat16())


@contextmanager
def observing(linears: Mapping[str, nn.Module], needs: tuple[type[Statistic], ...]) -> Iterator[dict[str, Observed]]:
    """Collect the statistics of each layer's inputs while the context lasts; layers with one input share them."""
    observer = _Observer(needs)
    hooks = [linear.register_forward_pre_hook(observer.hook(name)) for name, linear in linears.items()]
    try:
        yield observer.observed
    finally:
        for hook in hooks:
            hook.remove()


class _Observer:
    """Gives each linear layer its statistics; the first layer that sees an input updates them for all that share it."""

    def __init__(self, needs: tuple[type[Statistic], ...]) -> None:
        self.observed: dict[str, Observed] = {}
        self._needs = needs
        self._leaders: set[str] = set()
        self._seen: list[tuple[weakref.ref[Tensor], Observed]] = []  # inputs of the first batch that still live

    def hook(self, name: str) -> Any:
        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            if name not in self.observed:
                self._meet(name, args[0])
            if name in self._leaders:
                self.observed[name].update(args[0])

        return see

    def _meet(self, name: str, inputs: Tensor) -> None:
        """Find the statistics that are kept of these very inputs, or start new ones."""
        shared = next((observed for seen, observed in self._seen if seen() is inputs), None)
        if shared is None:
            self._leaders.add(name)
            shared = Observed(self._needs, inputs.shape[-1])
            self._seen.append((weakref.ref(inputs), shared))
        self.observed[name] = shared


def _zeros(weight: Tensor) -> float:
    """The fraction of exact zeros."""
    return 1 - int(torch.count_nonzero(weight)) / weight.numel()
