"""Prunes every linear layer of one block at a time with one technique, and writes each block's weights to a file.

A block runs twice for each batch: to observe its inputs with dense weights, and to pass on its pruned outputs. In
sequential order it runs once for each group of linears that share an input, as far as that group, and to pass on.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from pruning.allocation import allocate, outlier_share
from pruning.calibration import BlockView, Note
from pruning.errors import ModelRefused
from pruning.gradients import Moments
from pruning.losses import measured
from pruning.model import Blocks, weight_of
from pruning.observing import count_groups, in_turn, observing, refuse_unreached
from pruning.stage import Model, Place, seconds
from pruning.stages import Layerwise
from pruning.statistics import Gram, InputNorm
from pruning.technique import Observed, Technique
from pruning.weights import Overlay, parameters, write_file
from server.checkpoint.lineage import Loss, Step

logger = logging.getLogger(__name__)

TOKENS_PER_COLUMN = 6
"""With fewer, Gram matrices are near singular and masks change with the rounding (docs/log.md)."""


def apply(stage: Layerwise, model: Model, place: Place) -> tuple[Model, Step]:
    """Prune every linear layer of every block; the pruned weights lie over the model's source."""
    blocks = place.blocks(model)
    groups = count_groups(blocks, place.inputs.calibration[0][:1]) if stage.order == "sequential" else 1
    if Gram in stage.technique.needs:
        warn_of_few_tokens(blocks, place.inputs.calibration[0].numel())
    moments = place.moments(blocks, stage.technique.moments) if stage.technique.moments else None
    measured, techniques = _techniques(stage, blocks, place)
    visit = PruneBlock(stage.technique, place.folder, groups, techniques, moments)
    notes = place.sweep(blocks).visit(visit, "pruning", visit.runs)
    source = Overlay(model.source, [block_file(place.folder, index) for index in range(len(blocks))])
    options = msgspec.to_builtins(stage.technique)
    step = Step(
        technique=options.pop("name"),
        options=options,
        sparsity={name: value for note in notes for name, value in note["sparsity"].items()},
        seconds=seconds(measured + notes) + round(moments.seconds if moments else 0, 1),
        parameters=parameters(source)[0],
        losses=losses_in(notes),
    )
    return Model(model.config, source), step


def warn_of_few_tokens(blocks: Blocks, tokens: int) -> None:
    """Log where `tokens` are too few for the Gram matrix of the block's widest input to be well conditioned."""
    columns, name = max((weight_of(linear).shape[1], name) for name, linear in blocks.linears(0).items())
    if tokens < TOKENS_PER_COLUMN * columns:
        logger.warning(
            "%d tokens of calibration are few for the %d inputs of %s: %d or more give a steadier result",
            tokens, columns, name, TOKENS_PER_COLUMN * columns,
        )  # fmt: skip


def _techniques(stage: Layerwise, blocks: Blocks, place: Place) -> tuple[list[Note], list[Technique]]:
    """The technique with the sparsity of each block, and the notes of the pass that measured it."""
    if not stage.allocation:
        return [], [stage.technique] * len(blocks)
    apart = place._replace(folder=place.folder / "outliers")
    notes = apart.sweep(blocks).visit(Outliers(stage.allocation.outliers), "measuring outliers", 1)
    fractions = allocate([note["outliers"] for note in notes], float(stage.technique.sparsity), stage.allocation.spread)
    return notes, [msgspec.structs.replace(stage.technique, sparsity=fraction) for fraction in fractions]


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
        scores = [weight_of(linears[name]).abs() * observed[name][InputNorm].value for name in observed]
        return {"outliers": outlier_share(scores, self._times), "seconds": monotonic() - start}


class PruneBlock:
    """A visit that applies `technique` and leaves `folder`/block-NNNN.safetensors behind.

    With more `groups` than one, as counted by `count_groups`, each sees those before it pruned. `techniques`, where
    given, are the same technique with another sparsity for each block.
    """

    def __init__(
        self,
        technique: Technique,
        folder: Path,
        groups: int = 1,
        techniques: Sequence[Technique] = (),
        moments: Moments | None = None,
    ) -> None:
        self._technique = technique
        self._techniques = techniques
        self._folder = folder
        self._moments = moments
        self._sequential = groups > 1
        self.runs = groups + 1 if technique.needs else 0
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

    def _observe(self, view: BlockView, linears: Mapping[str, nn.Module]) -> Iterator[dict[str, Observed]]:
        """The statistics of the layers that are to be pruned next."""
        if not self.runs:
            yield {name: Observed((), weight_of(linear).shape[1]) for name, linear in linears.items()}
        elif self._sequential:
            yield from in_turn(linears, self._technique.needs, view.run)
        else:
            with observing(linears, self._technique.needs) as observed:
                view.run()
            refuse_unreached(linears, observed)
            yield {name: observed[name] for name in linears}


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


def prune(weight: Tensor, technique: Technique, observed: Observed) -> Tensor | None:
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
