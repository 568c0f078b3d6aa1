"""The papers' formulas done slowly, in plain Python and float64: what the techniques are compared with."""

import math

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


def admm(weight: Matrix, gram: Matrix, sparsity: float | tuple[int, int], rho: float, iterations: int) -> Matrix:
    """ALPS' algorithm 1 with damping 0.01 by solving linear systems: the sparse iterate on unit-norm inputs."""
    scale = numpy.sqrt(numpy.diag(gram))
    matrix = gram / scale / scale[:, None] + 0.01 * numpy.eye(len(gram))
    dense = weight * scale
    sparse, dual, keep = dense, numpy.zeros_like(dense), numpy.ones(dense.shape, dtype=bool)
    for _ in range(iterations):
        free = numpy.linalg.solve(matrix + rho * numpy.eye(len(gram)), (dense @ matrix - dual + rho * sparse).T).T
        last, keep = keep, numpy.ones(dense.shape, dtype=bool)
        score = numpy.abs(free + dual / rho)
        if isinstance(sparsity, tuple):
            count, size = sparsity
            for i in range(len(score)):
                for j in range(0, score.shape[1], size):
                    _drop(keep[i, j : j + size], score[i, j : j + size], size - count)
        else:
            _drop(keep, score, int(score.size * sparsity))
        sparse = numpy.where(keep, free + dual / rho, 0)
        dual = dual + rho * (free - sparse)
        if (last == keep).all():
            break
        rho *= 1.1
    return sparse


def best_on_pattern(weight: Matrix, keep: NDArray[numpy.bool_], matrix: Matrix) -> Matrix:
    """The weights within `keep` with the least layer error, row by row, from the normal equations."""
    result = numpy.zeros_like(weight)
    for i in range(len(weight)):
        kept = keep[i].nonzero()[0]
        result[i, kept] = numpy.linalg.solve(matrix[numpy.ix_(kept, kept)], matrix[kept] @ weight[i])
    return result


def ria_score(weight: Matrix, inputs: Matrix, power: float) -> Matrix:
    """RIA: (|W_ij| / sum of column j + |W_ij| / sum of row i) times the norm of X_j to `power`."""
    score = numpy.zeros(weight.shape)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            size = abs(float(weight[i, j]))
            row, column = sum(abs(float(w)) for w in weight[i]), sum(abs(float(w)) for w in weight[:, j])
            score[i, j] = (size / column + size / row) * sum(float(x) ** 2 for x in inputs[:, j]) ** (power / 2)
    return score


def row_error(weight: Matrix, keep: NDArray[numpy.bool_], gram: Matrix) -> float:
    """The layer error of one row whose weights outside `keep` are removed."""
    removed = [j for j in range(len(weight)) if not keep[j]]
    return sum(float(weight[i] * weight[j] * gram[i, j]) for i in removed for j in removed)


def swapped(weight: Matrix, keep: NDArray[numpy.bool_], gram: Matrix, width: int, rounds: int) -> NDArray[numpy.bool_]:
    """One row's mask after up to `rounds` rounds of the best exchange in each run of `width` columns, by trying all."""
    keep = keep.copy()
    for _ in range(rounds):
        moved = False
        floor = 1e-6 * row_error(weight, keep, gram)
        for start in range(0, len(weight), width):
            run = range(start, min(start + width, len(weight)))
            before, trials = row_error(weight, keep, gram), {}
            for i in (i for i in run if keep[i]):
                for j in (j for j in run if not keep[j]):
                    trial = keep.copy()
                    trial[i], trial[j] = False, True
                    trials[i, j] = row_error(weight, trial, gram)
            if trials and before - min(trials.values()) > floor:
                i, j = min(trials, key=trials.__getitem__)
                keep[i], keep[j], moved = False, True, True
        if not moved:
            break
    return keep


def _drop(keep: NDArray[numpy.bool_], score: Matrix, count: int) -> None:
    """Set `keep`, a view, to False at the `count` lowest scores, the first of equals."""
    keep.flat[numpy.argsort(score, axis=None, kind="stable")[:count]] = False


def obd_mask(weight: Matrix, gradients: list[Matrix], sparsity: float | tuple[int, int]) -> NDArray[numpy.bool_]:
    """Optimal Brain Damage's keep mask: 1/2 E[g^2] w^2, compared in the whole matrix or within M columns of a row."""
    rows, columns = weight.shape
    keep = numpy.ones((rows, columns), dtype=bool)
    saliency = numpy.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            curvature = sum(float(gradient[i, j]) ** 2 for gradient in gradients) / len(gradients)
            saliency[i, j] = curvature * float(weight[i, j]) ** 2 / 2
    if not isinstance(sparsity, tuple):
        _drop(keep, saliency, int(saliency.size * sparsity))
        return keep
    for i in range(rows):
        for start in range(0, columns, sparsity[1]):
            group = slice(start, start + sparsity[1])
            _drop(keep[i, group], saliency[i, group], sparsity[1] - sparsity[0])
    return keep


def taylor(weight: Matrix, gradients: list[Matrix], order: str) -> Matrix:
    """LLM-Pruner's importance of each row of `weight`, from the gradient of each sequence's loss."""
    rows, columns = weight.shape
    result = numpy.zeros(rows)
    for i in range(rows):
        total = 0.0
        for j in range(columns):
            w, g = float(weight[i, j]), [float(gradient[i, j]) for gradient in gradients]
            first, second = w * sum(g) / len(g), w * sum(x * x for x in g) / len(g) * w
            total += {
                "param_first": abs(first),
                "param_second": second,
                "param_mix": abs(first - second / 2),
                "vectorize": first,
            }[order]
        result[i] = abs(total)
    return result


def least_squares_removal(weight: Matrix, gram: Matrix, size: int, count: int) -> tuple[list[int], Matrix]:
    """Remove `count` units of `size` columns: each time the one whose best refit of all that stay errs least.

    The units that stay, and the refitted weight, which is solved anew from the normal equations each time.
    """
    columns = weight.shape[1]
    damped = gram + 0.01 * numpy.mean(numpy.diag(gram)) * numpy.eye(columns)
    kept = list(range(columns // size))
    best = weight.copy()
    for _ in range(count):
        trials = []
        for unit in kept:
            stay = [u * size + k for u in kept if u != unit for k in range(size)]
            refit = numpy.zeros_like(weight)
            refit[:, stay] = numpy.linalg.solve(damped[numpy.ix_(stay, stay)], damped[stay] @ weight.T).T
            trials.append((float(numpy.trace((weight - refit) @ damped @ (weight - refit).T)), unit, refit))
        _, gone, best = min(trials, key=lambda trial: trial[:2])
        kept.remove(gone)
    return kept, best


def fluctuation(weight: Matrix, inputs: Matrix, size: int) -> Matrix:
    """FLAP's score of each unit of `size` columns: the mean of Var(X_j) ||W_:,j||^2; `inputs` is [tokens, columns]."""
    scores = []
    for j in range(weight.shape[1]):
        column = [float(x) for x in inputs[:, j]]
        mean = sum(column) / len(column)
        variance = sum((x - mean) ** 2 for x in column) / len(column)
        scores.append(variance * sum(float(w) ** 2 for w in weight[:, j]))
    return numpy.array([sum(scores[start : start + size]) / size for start in range(0, len(scores), size)])


def divergence(student: Matrix, teacher: Matrix, temperature: float) -> float:
    """Mean over rows of KL(teacher || student) of softmaxed logits [rows, vocabulary], times temperature squared."""
    total = 0.0
    for given, expected in zip(student / temperature, teacher / temperature, strict=True):
        q = [math.exp(x) / sum(math.exp(y) for y in given) for x in given]
        p = [math.exp(x) / sum(math.exp(y) for y in expected) for x in expected]
        total += sum(p[v] * math.log(p[v] / q[v]) for v in range(len(p)))
    return total / len(student) * temperature**2


def relative_error(output: Matrix, target: Matrix) -> float:
    """Mean over rows [tokens, hidden] of the squared distance over the target's square."""
    errors = [
        sum((float(o) - float(t)) ** 2 for o, t in zip(given, wanted, strict=True)) / sum(float(t) ** 2 for t in wanted)
        for given, wanted in zip(output, target, strict=True)
    ]
    return sum(errors) / len(errors)
