"""Rounding to the nearest code: no calibration, and the only stage that reaches the matrices outside the blocks.

A group of columns lies within one row, and a row of an embedding is one token: how often the token occurs scales the
whole cost of its groups, so weighting by frequency would choose the same scales.
"""

from pathlib import Path
from time import monotonic

import msgspec
import torch
from torch import nn

from pruning.model import base
from pruning.model.blocks import find_blocks, is_linear
from pruning.model.weights import Overlay, parameters, write_file
from pruning.progress import Progress
from pruning.recipe.options import Round
from pruning.stages.context import Model, Place
from pruning.stages.layerwise.prune import zeros
from pruning.techniques.mathematics.losses import by_diagonal
from pruning.techniques.mathematics.rounding import round_groups
from server.artifact.checkpoint.lineage import Loss, Step


def apply(stage: Round, model: Model, place: Place) -> tuple[Model, Step]:
    """Round the matrices that `stage` names, one in memory at a time; a tied head is rounded once."""
    start = monotonic()
    place.folder.mkdir(parents=True, exist_ok=True)
    matrices = _matrices(stage, base.skeleton(model.config))
    files = [place.folder / f"rounded-{number:04}.safetensors" for number in range(len(matrices))]
    with Progress("rounding", len(files), sum(file.exists() for file in files)) as progress:
        for (name, transposed), file in zip(matrices.items(), files, strict=True):
            if not file.exists():
                _round(stage, name, transposed, model, file)
                progress.step()
    source = Overlay(model.source, files)
    options = msgspec.to_builtins(stage)
    step = Step(
        technique=options.pop("kind"),
        options=options,
        sparsity={name: zeros(source.tensor(name)) for name in matrices},
        seconds=round(monotonic() - start, 1),
        parameters=parameters(source)[0],
        losses={name: _loss(model, source, name) for name in matrices} if stage.what == "blocks" else {},
    )
    return Model(model.config, source), step


def _matrices(stage: Round, network: nn.Module) -> dict[str, bool]:
    """The full names of the weights to round, of tied ones the first, and whether each is stored [columns, rows]."""
    inside = find_blocks(network)[0] + "."
    found: dict[str, bool] = {}
    for name, weight in network.named_parameters():
        module = network.get_submodule(name.rpartition(".")[0])
        known = isinstance(module, nn.Embedding) or is_linear(module)
        if known and weight.dim() == 2 and name.startswith(inside) == (stage.what == "blocks"):
            found[name] = is_linear(module) and not isinstance(module, nn.Linear)
    return found


def _loss(model: Model, source: Overlay, name: str) -> Loss:
    """How far rounding has changed one matrix, whichever way it is stored."""
    dense = model.source.tensor(name).float()
    return by_diagonal(dense, source.tensor(name).float(), torch.ones(dense.shape[1]), "weights")


def _round(stage: Round, name: str, transposed: bool, model: Model, file: Path) -> None:
    """Write one matrix rounded, and its scales."""
    weight = model.source.tensor(name).bfloat16().clone()
    rows = weight.T if transposed else weight
    scales = round_groups(rows, torch.ones(rows.shape[1]), stage.bits, stage.group)
    write_file(file, {name: weight, f"{name}.scales": scales.T if transposed else scales})
