"""The dense base quantised to about the bytes of an artifact: what pruning has to be better than.

Symmetric round-to-nearest, each group's scale searched for the least squared error; needs no data and takes seconds.
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

from pruning.base import skeleton
from pruning.model import find_blocks, is_linear
from pruning.rounding import round_groups
from server.checkpoint import lineage as record
from server.checkpoint.layouts import Group, Quantised, size_of
from server.checkpoint.reader import Artifact
from server.checkpoint.writer import CheckpointWriter


class Choice(msgspec.Struct, frozen=True):
    """Bits and group of all linears in the blocks, and the bytes that the whole model then has."""

    bits: int
    group: int
    bytes: int

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"base, {self.bits} bits in groups of {self.group}"


def choose(base: Artifact, wanted: int) -> Choice:
    """Of 8 and 4 bits in groups of 32, 64 and 128, what turns the bytes of `base` into the closest to `wanted`."""
    matrices = _linears(base)
    shapes = [base.shape(name)[:: -1 if turned else 1] for name, turned in matrices.items()]
    choices = []
    for bits, group in product((8, 4), get_args(Group)):
        saved = 0
        for rows, columns in shapes:
            layout = Quantised(bits=bits, group=group, columns=columns)  # type: ignore[arg-type]
            saved += rows * 2 * columns - size_of(layout, rows)
        choices.append(Choice(bits, group, base.size - saved))
    return min(choices, key=lambda choice: abs(choice.bytes - wanted))


@contextmanager
def quantised(base: Artifact, choice: Choice, folder: Path) -> Iterator[Artifact]:
    """An artifact below `folder` with the linears of all blocks of `base` rounded; it is removed at the end.

    It is stored as any quantised artifact is, so that a runner computes it as it would serve it.
    """
    matrices = _linears(base)
    with TemporaryDirectory(prefix="quantised-", dir=folder) as place:
        with CheckpointWriter(Path(place) / "artifact") as writer:
            for name, weight in base.tensors():
                writer.add(name, *(_rounded(weight, choice, matrices[name]) if name in matrices else (weight,)))
            for file in base.path.iterdir():
                if file.name not in (record.WEIGHTS, record.FILE):
                    writer.copy(file)
            lineage = writer.finish(base.lineage)
        yield Artifact(writer.path, lineage, base.config)


def _rounded(weight: Tensor, choice: Choice, turned: bool) -> tuple[Tensor, Tensor]:
    """`weight` as its codes and scales give it back, and the scales."""
    result = weight.bfloat16().clone()  # the base's own may be its file's
    rows = result.T if turned else result
    scales = round_groups(rows, torch.ones(rows.shape[1]), choice.bits, choice.group)
    return result, scales.T if turned else scales


def _linears(base: Artifact) -> dict[str, bool]:
    """The names of the weights of all linears in the blocks, and whether each is stored [columns, rows]."""
    path, blocks = find_blocks(skeleton(base.config))
    linears = ((name, module) for name, module in blocks.named_modules() if is_linear(module))
    return {f"{path}.{name}.weight": not isinstance(module, nn.Linear) for name, module in linears}
