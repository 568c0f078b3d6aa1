"""The stage `round`: rounding to nearest, without calibration, and the head by GPTQ on request.

The only stage that quantises embeddings and head.

Weighting an embedding's rows by token frequency would choose the same scales: a group lies within one row, so a
frequency only multiplies the cost of its groups.
"""

from pathlib import Path
from time import monotonic

import msgspec
import torch
from torch import nn

from pruning.model import base
from pruning.model.blocks import find_blocks, is_linear
from pruning.model.weights import Overlay, parameters, write_file
from pruning.passes.statistics import InputStatistics
from pruning.recipe.options import Round
from pruning.stages.block_weights import zero_fraction
from pruning.stages.context import StageContext, StageModel
from pruning.stages.layerwise.head import head_inputs, head_of, round_head
from pruning.techniques.mathematics.losses import diagonal_loss
from pruning.techniques.mathematics.rounding import round_groups
from server.artifact.checkpoint.lineage import Loss, Step
from server.progress import Progress


def apply(stage: Round, model: StageModel, context: StageContext) -> tuple[StageModel, Step]:
    """Round the matrices that `stage` selects, one in memory at a time; a tied head is rounded once.

    Each matrix has a file in the folder, so a killed run repeats at most one.
    """
    start = monotonic()
    context.folder.mkdir(parents=True, exist_ok=True)
    network = base.skeleton(model.config)
    matrices = _matrices(stage, network)
    files = [context.folder / f"rounded-{number:04}.safetensors" for number in range(len(matrices))]
    head = head_of(network)[0] if stage.head == "gptq" else None
    with Progress("rounding", len(files), sum(file.exists() for file in files)) as progress:
        for (name, transposed), file in zip(matrices.items(), files, strict=True):
            if not file.exists():
                observed = head_inputs(model, context) if name == head else None
                _round(stage, name, transposed, model, observed, file)
                progress.step()
    source = Overlay(model.source, files)
    options = msgspec.to_builtins(stage)
    step = Step(
        technique=options.pop("kind"),
        options=options,
        sparsity={name: zero_fraction(source.tensor(name)) for name in matrices},
        seconds=round(monotonic() - start, 1),
        parameters=parameters(source)[0],
        losses={name: _loss(model, source, name) for name in matrices} if stage.what == "blocks" else {},
    )
    return StageModel(model.config, source), step


def _matrices(stage: Round, network: nn.Module) -> dict[str, bool]:
    """Names of the weights to round, the first of tied ones, mapped to whether they are stored [columns, rows]."""
    inside = find_blocks(network)[0] + "."
    found: dict[str, bool] = {}
    for name, weight in network.named_parameters():
        module = network.get_submodule(name.rpartition(".")[0])
        known = isinstance(module, nn.Embedding) or is_linear(module)
        if known and weight.dim() == 2 and name.startswith(inside) == (stage.what == "blocks"):
            found[name] = is_linear(module) and not isinstance(module, nn.Linear)
    return found


def _loss(model: StageModel, source: Overlay, name: str) -> Loss:
    """The relative squared change of one matrix."""
    dense = model.source.tensor(name).float()
    return diagonal_loss(dense, source.tensor(name).float(), torch.ones(dense.shape[1]), "weights")


def _round(
    stage: Round, name: str, transposed: bool, model: StageModel, observed: InputStatistics | None, file: Path
) -> None:
    """Write one matrix, rounded, and its scales to `file`; `observed` are the inputs of a head rounded by GPTQ."""
    weight = model.source.tensor(name).bfloat16().clone()
    rows = weight.T if transposed else weight
    if observed:
        scales = round_head(stage, rows, observed)
    else:
        even = torch.ones(rows.shape[1])
        scales = round_groups(rows, even, stage.bits, stage.group, asymmetric=stage.scheme == "asymmetric")
    write_file(file, {name: weight, f"{name}.scales": scales.transpose(0, 1) if transposed else scales})
