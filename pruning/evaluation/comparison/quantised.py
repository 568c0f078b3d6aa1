"""The dense base quantised to about the bytes of an artifact: what pruning has to be better than.

Symmetric round-to-nearest, each group's scale searched for the least squared error; needs no data and takes seconds.
    python -m pruning.evaluation.comparison.quantised ARTIFACT OUTPUT
writes the artifact's base in 8 bits and groups of 32, for `secateur bench`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
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
from server.artifact.checkpoint.reader import Artifact, find_base
from server.artifact.checkpoint.writer import CheckpointWriter
from server.errors import SecateurError


class Choice(msgspec.Struct, frozen=True):
    """Bits and group of all linears in the blocks, and the bytes that the whole model then has."""

    bits: int
    group: int
    bytes: int

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"base, {self.bits} bits in groups of {self.group}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write it, unless it is there; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pruning.evaluation.comparison.quantised", description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--base-cache", type=Path, default=Path("build/base"), help="where the dense base lies")
    arguments = parser.parse_args(argv)
    try:
        base = find_base(arguments.base_cache, Artifact.open(arguments.artifact).lineage.base.digest)
        if not arguments.output.exists():
            write(
                base,
                next(choice for choice in choices(base) if (choice.bits, choice.group) == (8, 32)),
                arguments.output,
            )
    except SecateurError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def choices(base: Artifact) -> list[Choice]:
    """8 and 4 bits, each in groups of 32, 64 and 128."""
    shapes = [base.shape(name)[:: -1 if turned else 1] for name, turned in _linears(base).items()]
    found = []
    for bits, group in product((8, 4), get_args(Group)):
        saved = 0
        for rows, columns in shapes:
            layout = Quantised(bits=bits, group=group, columns=columns)  # type: ignore[arg-type]
            saved += rows * 2 * columns - size_of(layout, rows)
        found.append(Choice(bits, group, base.size - saved))
    return found


def choose(base: Artifact, wanted: int) -> Choice:
    """The one that turns the bytes of `base` into the closest to `wanted`."""
    return min(choices(base), key=lambda choice: abs(choice.bytes - wanted))


def write(base: Artifact, choice: Choice, path: Path) -> Artifact:
    """Store `base` at `path` with the linears of all blocks rounded, its own zeros among the codes."""
    matrices = _linears(base)
    with CheckpointWriter(path, zeros=True) as writer:
        for name, weight in base.tensors():
            writer.add(name, *(_rounded(weight, choice, matrices[name]) if name in matrices else (weight,)))
        for file in base.path.iterdir():
            if file.name not in (record.WEIGHTS, record.FILE):
                writer.copy(file)
        lineage = writer.finish(base.lineage)
    return Artifact(path, lineage, base.config)


@contextmanager
def quantised(base: Artifact, choice: Choice, folder: Path) -> Iterator[Artifact]:
    """An artifact below `folder`, as a runner would serve it, that is removed at the end."""
    with TemporaryDirectory(prefix="quantised-", dir=folder) as place:
        yield write(base, choice, Path(place) / "artifact")


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


if __name__ == "__main__":
    sys.exit(main())
