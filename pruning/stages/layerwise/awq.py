"""The stage `awq`: scale up the input columns with large activations, round, and scale down the module before.

Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration,
https://arxiv.org/abs/2306.00978, equations 4 and 5. Deliberate differences from the authors' code: (1) the module to
scale down is found by trial (`folding`), not listed per architecture; (2) the error is that of all layers that share
the input, from their Gram matrix; (3) clipping is `search_scales`, weighted by the mean squares of the inputs.
"""

import logging
from collections.abc import Mapping
from time import monotonic
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.model.blocks import weight_of
from pruning.model.weights import Overlay, parameters, write_file
from pruning.passes.observation import observing
from pruning.passes.statistics import Gram, InputStatistics, Statistic
from pruning.passes.sweep import BlockView, Note
from pruning.recipe.options import AWQ
from pruning.stages.block_weights import block_file, losses_in, naming_weight, stored_tensors, zero_fraction
from pruning.stages.context import StageContext, StageModel, total_seconds
from pruning.stages.layerwise.folding import FoldFinder
from pruning.techniques.mathematics.losses import gram_loss
from pruning.techniques.mathematics.rounding import in_groups, nearest_values, round_groups
from server.artifact.checkpoint.lineage import Step

logger = logging.getLogger(__name__)

RUNS = 2
"""Forwards of each block per batch: one to observe, one to pass on."""
GRID = 20
"""Exponents tried for the scale, in steps of 1 / GRID from 0."""


class MeanMagnitude(Statistic):
    """The mean of |x| of each input feature over all tokens."""

    def __init__(self, columns: int) -> None:
        self._sum = torch.zeros(columns)
        self._tokens = 0

    def update(self, inputs: Tensor) -> None:
        """Take in one batch of inputs [..., tokens, columns]."""
        self._sum += inputs.flatten(0, -2).abs().sum(dim=0)
        self._tokens += inputs.shape[:-1].numel()

    @property
    def value(self) -> Tensor:
        """The means [columns], float32."""
        return self._sum / self._tokens


def apply(stage: AWQ, model: StageModel, context: StageContext) -> tuple[StageModel, Step]:
    """Scale and round every linear layer of every block; zeros stay zero, and the model gains no tensors but scales.

    Journals each block's sparsity, losses, unscaled layers and seconds, and writes one file of weights per block.
    """
    blocks = context.blocks(model)
    notes = context.sweep(blocks).visit(_QuantiseBlock(stage, blocks.path, context), "quantising", RUNS)
    _say_unscaled([name for note in notes for name in note["unscaled"]])
    source = Overlay(model.source, [block_file(context.folder, index) for index in range(len(blocks))])
    step = Step(
        technique="awq",
        options={"bits": stage.bits, "group": stage.group, "scheme": stage.scheme},
        sparsity={name: value for note in notes for name, value in note["sparsity"].items()},
        seconds=total_seconds(notes),
        parameters=parameters(source)[0],
        losses=losses_in(notes),
    )
    return StageModel(model.config, source), step


def _say_unscaled(names: list[str]) -> None:
    """Warn of layers that were rounded without scaling."""
    if names:
        logger.warning(
            "%d layers, such as %s, are rounded unscaled: no module before them can be scaled down",
            len(names), names[0],
        )  # fmt: skip


class _Scaled(NamedTuple):
    """The result of scaling one block."""

    grams: dict[str, Tensor]
    """The Gram matrix of each layer's inputs after scaling, by weight name."""
    changed: dict[str, Tensor]
    """The weights that the inverse scales were folded into, by name."""
    unscaled: list[str]
    """The layers without a module to fold the scales into."""


class _QuantiseBlock:
    """A visit that scales, rounds and saves one block."""

    def __init__(self, stage: AWQ, path: str, context: StageContext) -> None:
        self._stage = stage
        self._path = path
        self._context = context
        self._folder = FoldFinder(context.folder / "folds-failed.json")

    def __call__(self, view: BlockView) -> Note:
        start = monotonic()
        linears = view.linears
        with observing(linears, (Gram, MeanMagnitude)) as observed:
            view.run()
        if missing := linears.keys() - observed.keys():
            raise ModelRefused(f"{min(missing)} is never reached by the calibration data, so it cannot be quantised")
        grams, changed, unscaled = self._scale(view, linears, observed)
        tensors = {name: tensor.bfloat16() for name, tensor in changed.items()}
        losses: dict[str, Any] = {}
        for name, linear in linears.items():
            weight, gram = weight_of(linear), grams[name]
            scaled = weight.clone()
            stage, asymmetric = self._stage, self._stage.scheme == "asymmetric"
            scales = round_groups(weight, gram.diagonal(), stage.bits, stage.group, asymmetric=asymmetric)
            with naming_weight(name):
                losses[name] = msgspec.to_builtins(gram_loss(scaled, weight, gram))
            tensors |= stored_tensors(name, linear, scales)
        write_file(block_file(self._context.folder, view.index), tensors)
        view.advance()
        return {
            "sparsity": {name: zero_fraction(weight_of(linear)) for name, linear in linears.items()},
            "losses": losses,
            "unscaled": unscaled,
            "seconds": monotonic() - start,
        }

    def _scale(
        self, view: BlockView, linears: Mapping[str, nn.Module], observed: Mapping[str, InputStatistics]
    ) -> _Scaled:
        """Scale the inputs of every group of layers for which a fold exists."""
        grams: dict[str, Tensor] = {}
        changed: dict[str, Tensor] = {}
        unscaled: list[str] = []
        for names in _by_shared_input(observed):
            users = {name: linears[name] for name in names}
            with naming_weight(names[0]):
                gram = observed[names[0]][Gram].value
            scale = torch.ones(len(gram))
            fold = self._folder.find(view, users)
            if fold:
                weight = torch.cat([weight_of(user) for user in users.values()])
                magnitude = observed[names[0]][MeanMagnitude].value
                scale = fold.divide(choose_scale(weight, gram, magnitude, self._stage))
                for user in users.values():
                    weight_of(user).mul_(scale)
                changed |= {f"{self._path}.{view.index}.{fold.name}.{leaf}": t for leaf, t in fold.tensors().items()}
            else:
                unscaled += names
            grams |= dict.fromkeys(names, gram / scale / scale[:, None])
        return _Scaled(grams, changed, unscaled)


def choose_scale(weight: Tensor, gram: Tensor, magnitude: Tensor, stage: AWQ) -> Tensor:
    """The scale [columns] = mean|x|^r, r = 0, 1/20, ..., 19/20, that gives the rounded `weight` the least output error.

    `weight` is [rows, columns], `gram` [columns, columns], `magnitude` [columns]. The error is tr(D H D^T) with D = W -
    Q(W s) / s, where Q rounds to nearest in unclipped groups.
    """
    best, least = torch.ones_like(magnitude), float("inf")
    for step in range(GRID):
        scale = magnitude.pow(step / GRID).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        delta = weight - _unclipped(weight * scale, stage) / scale
        error = float((delta @ gram * delta).sum())
        if error < least:
            best, least = scale, error
    return best


def _unclipped(weight: Tensor, stage: AWQ) -> Tensor:
    """`weight` [rows, columns] rounded on the grid that the extreme weights of each group just fit."""
    grouped = in_groups(weight, stage.group)
    if stage.scheme == "asymmetric":
        low, high = grouped.amin(dim=2, keepdim=True), grouped.amax(dim=2, keepdim=True)
        grid = torch.cat([(high - low) / (2**stage.bits - 1), low], dim=2)
    else:
        grid = grouped.abs().amax(dim=2) / (2 ** (stage.bits - 1) - 1)
    return nearest_values(grouped, grid, stage.bits).flatten(1)[:, : weight.shape[1]]


def _by_shared_input(observed: Mapping[str, InputStatistics]) -> list[list[str]]:
    """Names of the layers, grouped by shared input."""
    groups: dict[int, list[str]] = {}
    for name, statistics in observed.items():
        groups.setdefault(id(statistics), []).append(name)
    return list(groups.values())
