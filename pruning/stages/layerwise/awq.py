"""AWQ: scale up the input columns that see large activations, then round; what went before is scaled down to match.

Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration,
https://arxiv.org/abs/2306.00978, equations 4 and 5. Deliberate differences from their code: (1) what to scale down is
found and proved by `folding`, not listed by architecture; (2) the error is that of the layers that share the input,
from their Gram matrix; (3) the clip is `search_scale`, weighted by the squares of the inputs.
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
from pruning.stages.context import Model, Place, seconds
from pruning.stages.layerwise.folding import Folder
from pruning.stages.layerwise.prune import block_file, losses_in, naming, stored, zeros
from pruning.techniques.mathematics.losses import by_gram
from pruning.techniques.mathematics.rounding import nearest, round_groups
from server.artifact.checkpoint.lineage import Step

logger = logging.getLogger(__name__)

RUNS = 2
GRID = 20


class MeanMagnitude(Statistic):
    """The mean over all tokens of |x| of each input feature."""

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


def apply(stage: AWQ, model: Model, place: Place) -> tuple[Model, Step]:
    """Scale and round every linear layer of every block; zeros stay zero, and the model has no new tensors."""
    blocks = place.blocks(model)
    notes = place.sweep(blocks).visit(_Visit(stage, blocks.path, place), "quantising", RUNS)
    _say_unscaled([name for note in notes for name in note["unscaled"]])
    source = Overlay(model.source, [block_file(place.folder, index) for index in range(len(blocks))])
    step = Step(
        technique="awq",
        options={"bits": stage.bits, "group": stage.group, "scheme": stage.scheme},
        sparsity={name: value for note in notes for name, value in note["sparsity"].items()},
        seconds=seconds(notes),
        parameters=parameters(source)[0],
        losses=losses_in(notes),
    )
    return Model(model.config, source), step


def _say_unscaled(names: list[str]) -> None:
    """Log which layers were rounded without having been scaled."""
    if names:
        logger.warning(
            "the inputs of %d layers, %s for instance, come from where no scale folds into: they are rounded unscaled",
            len(names), names[0],
        )  # fmt: skip


class _Scaled(NamedTuple):
    """What scaling one block came to."""

    grams: dict[str, Tensor]
    """The Gram matrix of each layer's inputs afterwards."""
    changed: dict[str, Tensor]
    """The weights that scales were folded into."""
    unscaled: list[str]
    """The layers whose scales fold into nothing."""


class _Visit:
    """Scales, rounds and saves one block."""

    def __init__(self, stage: AWQ, path: str, place: Place) -> None:
        self._stage = stage
        self._path = path
        self._place = place
        self._folder = Folder(place.folder / "folds-failed.json")

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
            scales = round_groups(weight, gram.diagonal(), self._stage.bits, self._stage.group)
            with naming(name):
                losses[name] = msgspec.to_builtins(by_gram(scaled, weight, gram))
            tensors |= stored(name, linear, scales)
        write_file(block_file(self._place.folder, view.index), tensors)
        view.advance()
        return {
            "sparsity": {name: zeros(weight_of(linear)) for name, linear in linears.items()},
            "losses": losses,
            "unscaled": unscaled,
            "seconds": monotonic() - start,
        }

    def _scale(
        self, view: BlockView, linears: Mapping[str, nn.Module], observed: Mapping[str, InputStatistics]
    ) -> _Scaled:
        """Fold scales where that is possible."""
        grams: dict[str, Tensor] = {}
        changed: dict[str, Tensor] = {}
        unscaled: list[str] = []
        for names in _sharing(observed):
            users = {name: linears[name] for name in names}
            with naming(names[0]):
                gram = observed[names[0]][Gram].value
            scale = torch.ones(len(gram))
            fold = self._folder.find(view, users)
            if fold:
                weight = torch.cat([weight_of(user) for user in users.values()])
                magnitude = observed[names[0]][MeanMagnitude].value
                scale = fold.divide(choose_scale(weight, gram, magnitude, self._stage.bits, self._stage.group))
                for user in users.values():
                    weight_of(user).mul_(scale)
                changed |= {f"{self._path}.{view.index}.{fold.name}.{leaf}": t for leaf, t in fold.tensors().items()}
            else:
                unscaled += names
            grams |= dict.fromkeys(names, gram / scale / scale[:, None])
        return _Scaled(grams, changed, unscaled)


def choose_scale(weight: Tensor, gram: Tensor, magnitude: Tensor, bits: int, group: int) -> Tensor:
    """The scale [columns], mean|x|^r with r of 0, 1/20, ... 19/20, that leaves `weight` the least output error.

    The error is tr(D H D^T) of D = W - Q(W s) / s, with Q the nearest codes of unclipped groups.
    """
    best, least = torch.ones_like(magnitude), float("inf")
    for step in range(GRID):
        scale = magnitude.pow(step / GRID).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        delta = weight - _unclipped(weight * scale, bits, group) / scale
        error = float((delta @ gram * delta).sum())
        if error < least:
            best, least = scale, error
    return best


def _unclipped(weight: Tensor, bits: int, group: int) -> Tensor:
    """`weight` [rows, columns] rounded with the scale that lets the largest weight of each group just fit."""
    rows, columns = weight.shape
    grouped = nn.functional.pad(weight, (0, -columns % group)).view(rows, -1, group)
    scale = grouped.abs().amax(dim=2, keepdim=True) / (2 ** (bits - 1) - 1)
    rounded: Tensor = nearest(grouped, scale, bits) * scale
    return rounded.view(rows, -1)[:, :columns]


def _sharing(observed: Mapping[str, InputStatistics]) -> list[list[str]]:
    """The names of layers, those with one input together."""
    groups: dict[int, list[str]] = {}
    for name, statistics in observed.items():
        groups.setdefault(id(statistics), []).append(name)
    return list(groups.values())
