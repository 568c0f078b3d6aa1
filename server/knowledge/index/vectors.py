"""Vectors, memory-mapped: cosine similarity with all passages of a partition, exactly."""

from collections.abc import Sequence
from pathlib import Path

import numpy
from numpy.typing import NDArray

from server.errors import ArtifactError

Vector = NDArray[numpy.float32]


class Vectors:
    """The matrix float32 [passages + stored questions, dimension] of unit vectors, in the order of their ids."""

    def __init__(self, path: Path, rows: int, dimension: int) -> None:
        try:
            self._matrix: Vector = numpy.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from None
        if self._matrix.shape != (rows, dimension) or self._matrix.dtype != numpy.float32:
            raise ArtifactError(f"{path} is {self._matrix.dtype} {self._matrix.shape}, not float32 {(rows, dimension)}")

    def best(self, query: Vector, spans: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, float]]:
        """The rows within `spans` (first, end) with the highest cosines, best first; equal ones by row."""
        found: list[tuple[int, float]] = []
        for first, end in spans:
            if end > first:
                cosines = self._matrix[first:end] @ query
                count = min(limit, end - first)
                top = numpy.argpartition(-cosines, count - 1)[:count]
                found += [(first + int(at), float(cosines[at])) for at in top]
        return sorted(found, key=lambda one: (-one[1], one[0]))[:limit]

    def cosine(self, query: Vector, row: int) -> float:
        """The cosine of one row."""
        return float(self._matrix[row] @ query)


def unit(vectors: Vector) -> Vector:
    """Vectors divided by their norms; a vector of zeros stays."""
    norms = numpy.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / numpy.where(norms == 0, 1, norms)).astype(numpy.float32)


def write(path: Path, vectors: Vector) -> None:
    """Write the matrix in NumPy's format, whose data begin at a multiple of 64 bytes."""
    with path.open("wb") as file:
        numpy.save(file, numpy.ascontiguousarray(vectors, dtype="<f4"), allow_pickle=False)
