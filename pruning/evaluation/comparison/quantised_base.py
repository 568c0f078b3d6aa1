"""The dense base quantised to about an artifact's bytes: the rival that pruning has to beat.

Symmetric round-to-nearest with the scale of each group searched for the least squared error; needs no data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

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


class Quantisation(msgspec.Struct, frozen=True):
    """Bits and group size of all linear layers in the blocks, and the bytes of the whole model."""

    bits: int
    group: int
    bytes: int

    @property
    def name(self) -> str:
        """The label of the model in tables."""
        return f"base, {self.bits} bits in groups of {self.group}"


def quantisations(base: Artifact) -> list[Quantisation]:
    """All candidates: 8 and 4 bits, each in groups of 32, 64 and 128."""
    shapes = [base.shape(name)[:: -1 if turned else 1] for name, turned in _linears(base).items()]
    found = []
    for bits, group in product((8, 4), get_args(Group)):
        saved = 0
        for rows, columns in shapes:
            layout = Quantised(bits=bits, group=group, columns=columns)  # type: ignore[arg-type]
            saved += rows * 2 * columns - size_of(layout, rows)
        found.append(Quantisation(bits, group, base.size - saved))
    return found


def nearest_in_size(base: Artifact, size: int) -> Quantisation:
    """The candidate whose model is closest to `size` bytes."""
    return min(quantisations(base), key=lambda choice: abs(choice.bytes - size))


def write(base: Artifact, quantisation: Quantisation, path: Path) -> Artifact:
    """Write `base` to `path` with the linear layers of all blocks quantised, zeros stored as ordinary codes."""
    matrices = _linears(base)
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


def _rounded(weight: Tensor, quantisation: Quantisation, transposed: bool) -> tuple[Tensor, Tensor]:
    """`weight` after dequantisation, and its scales, both in the orientation of `weight`."""
    result = weight.bfloat16().clone()  # `weight` may be mapped from the base's file
    rows = result.T if transposed else result
    scales = round_groups(rows, torch.ones(rows.shape[1]), quantisation.bits, quantisation.group)
    return result, scales.T if transposed else scales


def _linears(base: Artifact) -> dict[str, bool]:
    """The weights of all linear layers in the blocks, by name, and whether each is stored [columns, rows]."""
    path, blocks = find_blocks(skeleton(base.config))
    linears = ((name, module) for name, module in blocks.named_modules() if is_linear(module))
    return {f"{path}.{name}.weight": not isinstance(module, nn.Linear) for name, module in linears}
