"""The dense base quantised to an artifact's bytes, embeddings too: the rival that pruning has to beat.

Rounds to nearest, with the scale of each group, and its minimum where codes are asymmetric, searched for the least
squared error; needs no data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, get_args

import msgspec
import torch
from torch import Tensor, nn

from pruning.model.base import skeleton
from pruning.model.blocks import find_blocks, is_linear
from pruning.techniques.mathematics.rounding import in_groups, round_groups
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.layouts import Group, Quantised, size_of
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import CheckpointWriter

SLACK = 0.02
"""Bytes above an artifact's, as a share, that its rival may have."""
SAMPLED = 6
"""Matrices of the blocks whose rounding errors are measured to choose among candidates."""
ROWS = 16
"""Rows of each of them; the embeddings have ten times as many."""


class Codes(NamedTuple):
    """Integer codes of one kind."""

    bits: int
    asymmetric: bool = False

    def __str__(self) -> str:
        return f"{self.bits} bits{' asymmetric' if self.asymmetric else ''}"


KINDS = (Codes(8), *(Codes(bits, asymmetric) for bits in (6, 5, 4, 3) for asymmetric in (False, True)))
EMBEDDINGS = (Codes(6), Codes(8))
"""Codes of embeddings beside those of the blocks."""


class Matrix(NamedTuple):
    """How one matrix is stored."""

    transposed: bool
    """Stored [columns, rows]."""
    embedding: bool
    """Outside the blocks: an embedding or the head."""


class Quantisation(msgspec.Struct, frozen=True):
    """Codes of the blocks' linear layers and of the embeddings, their group size, and the bytes of the whole model."""

    codes: Codes
    embedding_codes: Codes
    group: int
    bytes: int

    @property
    def name(self) -> str:
        """The label of the model in tables."""
        embeddings = "" if self.embedding_codes == self.codes else f", embeddings {self.embedding_codes}"
        return f"base, {self.codes}{embeddings} in groups of {self.group}"


def quantisations(base: Artifact) -> list[Quantisation]:
    """All candidates: each of `KINDS` in each group, the embeddings in the same codes or in `EMBEDDINGS`."""
    matrices = _matrices(base)
    shapes = {name: base.shape(name)[:: -1 if kind.transposed else 1] for name, kind in matrices.items()}
    found = []
    for codes, group in product(KINDS, get_args(Group)):
        for embedding_codes in dict.fromkeys((codes, *EMBEDDINGS)):
            saved = 0
            for name, (rows, columns) in shapes.items():
                bits, asymmetric = embedding_codes if matrices[name].embedding else codes
                layout = Quantised(bits=bits, group=group, columns=columns, asymmetric=asymmetric)  # type: ignore[arg-type]
                saved += rows * 2 * columns - size_of(layout, rows)
            found.append(Quantisation(codes, embedding_codes, group, base.size - saved))
    return found


def nearest_in_size(base: Artifact, size: int) -> Quantisation:
    """The candidate of least rounding error that has at most `size` bytes, give or take `SLACK`; else the smallest.

    The error is measured on a sample of the base's own weights, so a base that lies on a grid finds it.
    """
    every = quantisations(base)
    fitting = [choice for choice in every if choice.bytes <= size * (1 + SLACK)]
    if not fitting:
        return min(every, key=lambda choice: choice.bytes)
    return min(fitting, key=RoundingErrors(base).of)


class RoundingErrors:
    """Squared rounding errors of candidates, estimated from a sample of the rows of `base`."""

    def __init__(self, base: Artifact) -> None:
        matrices = _matrices(base)
        inside = [name for name, kind in matrices.items() if not kind.embedding]
        self._numbers = dict.fromkeys((False, True), 0)
        for name, kind in matrices.items():
            rows, columns = base.shape(name)
            self._numbers[kind.embedding] += rows * columns
        chosen = inside[:: -(-len(inside) // SAMPLED)] + [name for name, kind in matrices.items() if kind.embedding]
        self._samples = [(matrices[name].embedding, _sample(base.tensor(name), matrices[name])) for name in chosen]
        self._known: dict[tuple[Codes, int, bool], float] = {}

    def of(self, choice: Quantisation) -> float:
        """The error of the whole model: of each part its relative error times its number of weights."""
        parts = ((choice.codes, False), (choice.embedding_codes, True))
        return sum(self._relative(codes, choice.group, part) * self._numbers[part] for codes, part in parts)

    def _relative(self, codes: Codes, group: int, embedding: bool) -> float:
        """||W - Q(W)||^2 / ||W||^2 over the samples of the blocks, or of the embeddings."""
        key = (codes, group, embedding)
        if key not in self._known:
            parts = [in_groups(weight, group).flatten(0, 1) for part, weight in self._samples if part == embedding]
            whole = torch.cat([*parts, torch.zeros(1, group, dtype=torch.bfloat16)])  # each group a row of its own
            rounded = whole.clone()
            round_groups(rounded, torch.ones(group), codes.bits, group, asymmetric=codes.asymmetric)
            lost = (rounded - whole).float().square().sum() / whole.float().square().sum().clamp(min=1e-30)
            self._known[key] = float(lost)
        return self._known[key]


def _sample(weight: Tensor, kind: Matrix) -> Tensor:
    """Some rows of a matrix, spread over it, in bfloat16."""
    rows = weight.T if kind.transposed else weight
    count = 10 * ROWS if kind.embedding else ROWS
    return rows[:: max(len(rows) // count, 1)][:count].bfloat16().contiguous()


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
    bits, asymmetric = quantisation.embedding_codes if kind.embedding else quantisation.codes
    grid = round_groups(rows, torch.ones(rows.shape[1]), bits, quantisation.group, asymmetric=asymmetric)
    return result, grid.transpose(0, 1) if kind.transposed else grid


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
