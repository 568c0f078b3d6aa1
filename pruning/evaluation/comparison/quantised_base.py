"""The dense base quantised to an artifact's bytes, embeddings too: the rival that pruning has to beat.

Symmetric round-to-nearest with the scale of each group searched for the least squared error; needs no data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, get_args

import msgspec
import torch
from torch import Tensor, nn

from pruning.model.base import skeleton
from pruning.model.blocks import find_blocks, is_linear
from pruning.techniques.mathematics.rounding import round_groups
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.layouts import Group, Quantised, size_of
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import CheckpointWriter

BITS = (8, 6, 5, 4, 3)
SLACK = 0.02
"""Bytes above an artifact's, as a share, that its rival may have."""


class Matrix(NamedTuple):
    """How one matrix is stored."""

    transposed: bool
    """Stored [columns, rows]."""
    embedding: bool
    """Outside the blocks: an embedding or the head."""


class Quantisation(msgspec.Struct, frozen=True):
    """Bits of the blocks' linear layers and of the embeddings, their group size, and the bytes of the whole model."""

    bits: int
    embedding_bits: int
    group: int
    bytes: int
    error: float
    """Expected squared rounding error in arbitrary units: parameters x 4^-bits x ln(group), summed over matrices."""

    @property
    def name(self) -> str:
        """The label of the model in tables."""
        embeddings = "" if self.embedding_bits == self.bits else f", embeddings {self.embedding_bits}"
        return f"base, {self.bits} bits{embeddings} in groups of {self.group}"


def quantisations(base: Artifact) -> list[Quantisation]:
    """All candidates: each of `BITS` in each group, the embeddings in the same bits, in 6 or in 8."""
    matrices = _matrices(base)
    shapes = {name: base.shape(name)[:: -1 if kind.transposed else 1] for name, kind in matrices.items()}
    found = []
    for bits, group in product(BITS, get_args(Group)):
        for embedding_bits in dict.fromkeys((bits, 6, 8)):
            saved, error = 0, 0.0
            for name, (rows, columns) in shapes.items():
                own = embedding_bits if matrices[name].embedding else bits
                layout = Quantised(bits=own, group=group, columns=columns)  # type: ignore[arg-type]
                saved += rows * 2 * columns - size_of(layout, rows)
                error += rows * columns * 4.0**-own * log(group)
            found.append(Quantisation(bits, embedding_bits, group, base.size - saved, error))
    return found


def nearest_in_size(base: Artifact, size: int) -> Quantisation:
    """The candidate of least expected error that has at most `size` bytes, give or take `SLACK`; else the smallest."""
    every = quantisations(base)
    fitting = [choice for choice in every if choice.bytes <= size * (1 + SLACK)]
    if not fitting:
        return min(every, key=lambda choice: choice.bytes)
    return min(fitting, key=lambda choice: choice.error)


def write(base: Artifact, quantisation: Quantisation, path: Path) -> Artifact:
    """Write `base` to `path` with all matrices quantised, embeddings and head too, zeros stored as ordinary codes."""
    matrices = _matrices(base)
    with CheckpointWriter(path, zeros=True) as writer:
        for name, weight in base.tensors():
            writer.add(name, *(_rounded(weight, quantisation, matrices[name]) if name in matrices else (weight,)))
        for file in base.path.iterdir():
            if file.name not in (record.WEIGHTS, record.FILE):
                writer.copy(file)
        lineage = writer.finish(base.lineage)
    return Artifact(path, lineage, base.config)


@contextmanager
def quantised(base: Artifact, quantisation: Quantisation, folder: Path) -> Iterator[Artifact]:
    """The quantised base as an artifact in a temporary directory below `folder`."""
    with TemporaryDirectory(prefix="quantised-", dir=folder) as place:
        yield write(base, quantisation, Path(place) / "artifact")


def _rounded(weight: Tensor, quantisation: Quantisation, kind: Matrix) -> tuple[Tensor, Tensor]:
    """`weight` after dequantisation, and its scales, both in the orientation of `weight`."""
    result = weight.bfloat16().clone()  # `weight` may be mapped from the base's file
    rows = result.T if kind.transposed else result
    bits = quantisation.embedding_bits if kind.embedding else quantisation.bits
    scales = round_groups(rows, torch.ones(rows.shape[1]), bits, quantisation.group)
    return result, scales.T if kind.transposed else scales


def _matrices(base: Artifact) -> dict[str, Matrix]:
    """The weights of all linear layers and embeddings, by name, the first of tied ones."""
    network = skeleton(base.config)
    blocks = find_blocks(network)[0] + "."
    found = {}
    for name, weight in network.named_parameters():
        module = network.get_submodule(name.rpartition(".")[0])
        if weight.dim() == 2 and (isinstance(module, nn.Embedding) or is_linear(module)):
            transposed = is_linear(module) and not isinstance(module, nn.Linear)
            found[name] = Matrix(transposed, not name.startswith(blocks))
    return found
