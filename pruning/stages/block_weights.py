"""The weights that a stage writes for one block: file, layout, sparsity and losses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused
from pruning.passes.sweep import Note
from server.artifact.checkpoint.lineage import Loss


def block_file(folder: Path, index: int) -> Path:
    """The file of the changed weights of block `index`."""
    return folder / f"block-{index:04}.safetensors"


def stored_tensors(name: str, linear: nn.Module, scales: Tensor | None) -> dict[str, Tensor]:
    """The tensors to store for one layer: its weight and, if quantised, its scales, transposed as the weight is."""
    weight = {name: linear.get_parameter("weight").data.bfloat16()}
    if scales is None:
        return weight
    return weight | {f"{name}.scales": scales if isinstance(linear, nn.Linear) else scales.transpose(0, 1)}


def zero_fraction(weight: Tensor) -> float:
    """The fraction of exact zeros in `weight`."""
    return 1 - int(torch.count_nonzero(weight)) / weight.numel()


def losses_in(notes: Sequence[Note]) -> dict[str, Loss]:
    """The loss of each weight, from the notes of the block visits."""
    return {name: msgspec.convert(value, Loss) for note in notes for name, value in note.get("losses", {}).items()}


@contextmanager
def naming_weight(name: str) -> Iterator[None]:
    """Prefix the message of a ModelRefused with the name of the weight."""
    try:
        yield
    except ModelRefused as error:
        raise ModelRefused(f"{name}: {error.message}") from error
