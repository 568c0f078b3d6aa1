"""The papers' formulas done slowly, in plain Python and float64: what the techniques are compared with."""

import numpy
from numpy.typing import NDArray

Matrix = NDArray[numpy.float64]


def wanda_mask(weight: Matrix, inputs: Matrix, sparsity: float | tuple[int, int]) -> NDArray[numpy.bool_]:
    """Wanda's keep mask: |W_ij| times the norm of X_j, compared within a row or within M consecutive inputs.

    `inputs` is [tokens, columns]; a pair (N, M) keeps N of M.
    """
    rows, columns = weight.shape
    keep = numpy.ones((rows, columns), dtype=bool)
    norms = [sum(float(x) ** 2 for x in inputs[:, j]) ** 0.5 for j in range(columns)]
    for i in range(rows):
        score = [abs(float(weight[i, j])) * norms[j] for j in range(columns)]
        if isinstance(sparsity, tuple):
            count, size = sparsity
            groups = [(list(range(g, g + size)), size - count) for g in range(0, columns, size)]
        else:
            groups = [(list(range(columns)), int(columns * sparsity))]
        for members, remove in groups:
            for j in sorted(members, key=lambda j: score[j])[:remove]:
                keep[i, j] = False
    return keep


def sparsegpt(weight: Matrix, gram: Matrix, sparsity: float | tuple[int, int], block: int = 128) -> Matrix:
    """SparseGPT's algorithm 1 with damping 0.01, one column and one row at a time."""
    rows, columns = weight.shape
    damped = gram + 0.01 * numpy.mean(numpy.diag(gram)) * numpy.eye(columns)
    upper = numpy.linalg.cholesky(numpy.linalg.inv(damped)).T
    result = weight.copy()
    keep = numpy.ones((rows, columns), dtype=bool)
    for j in range(columns):
        if isinstance(sparsity, tuple) and j % sparsity[1] == 0:
            group = slice(j, j + sparsity[1])
            for i in range(rows):
                _drop(keep[i, group], result[i, group] ** 2 / numpy.diag(upper)[group] ** 2, sparsity[1] - sparsity[0])
        elif not isinstance(sparsity, tuple) and j % block == 0:
            group = slice(j, min(j + block, columns))
            score = result[:, group] ** 2 / numpy.diag(upper)[group] ** 2
            _drop(keep[:, group], score, int(score.size * sparsity))
        for i in range(rows):
            if not keep[i, j]:
                result[i, j:] -= result[i, j] / upper[j, j] * upper[j, j:]
    return numpy.where(keep, result, 0)


def _drop(keep: NDArray[numpy.bool_], score: Matrix, count: int) -> None:
    """Set `keep`, a view, to False at the `count` lowest scores, the first of equals."""
    keep.flat[numpy.argsort(score, axis=None, kind="stable")[:count]] = False
