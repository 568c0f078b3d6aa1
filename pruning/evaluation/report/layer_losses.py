"""Explains the losses of each layer from the figures in an artifact's lineage; recomputes nothing.

A layer's error is the removed share times the part of it that the remaining weights do not compensate. The reason given
for a high error is whichever factor is further above the median of all layers.
"""

import re
from collections.abc import Mapping, Sequence
from math import log
from statistics import median
from typing import NamedTuple

from server.artifact.checkpoint.lineage import Lineage, Loss, Step

MEASURES = {
    "gram": "exact on the calibration data, from Gram matrices",
    "diagonal": "diagonal approximation: input norms alone, as if inputs were independent",
    "weights": "change of the weights alone: the technique looks at no inputs",
}
NOTHING = "nothing to explain: no stage changed weights layer by layer, or an older version made the artifact"
SMALLEST = 1e-12
"""Lower bound of a share, so that its logarithm exists."""


class Layers(NamedTuple):
    """The losses of one step as a grid of blocks by matrices."""

    title: str
    blocks: tuple[int, ...]
    matrices: tuple[str, ...]
    losses: Mapping[tuple[int, str], Loss]
    sparsity: Mapping[tuple[int, str], float]


def grids(lineage: Lineage) -> list[Layers]:
    """One grid per step that recorded layer losses, in order."""
    return [_grid(number, step) for number, step in enumerate(lineage.steps, 1) if step.losses]


def explanation(lineage: Lineage) -> str:
    """The table of every step as text; `NOTHING` if no step recorded losses."""
    shown = {layers.title: layers for layers in grids(lineage)}
    if not shown:
        return NOTHING
    lines: list[str] = []
    for number, step in enumerate(lineage.steps, 1):
        if step.losses:
            lines += _table(shown[_title(number, step)])
        elif step.removed_blocks:
            lines.append(f"{_title(number, step)}: removed blocks {', '.join(map(str, step.removed_blocks))}")
        if step.recovery:
            change = f"{step.recovery.before:.4g} before, {step.recovery.after:.4g} after"
            lines.append(f"{_title(number, step)}: {change} ({step.recovery.measure})")
    return "\n".join(lines)


def reason(loss: Loss, others: Sequence[Loss]) -> str:
    """One sentence that explains the error of `loss` relative to the median of `others`."""
    removed = median(other.removed for other in others)
    if loss.removed < loss.error / 2:
        return f"hardly anything was removed: this is rounding; {loss.outliers:.1%} of its weights are outliers"
    left = median(_uncompensated(other) for other in others)
    heavy, stiff = log(max(loss.removed, SMALLEST) / max(removed, SMALLEST)), log(_uncompensated(loss) / left)
    if heavy >= stiff:
        return f"{loss.removed:.1%} of |W| x input was removed (median {removed:.1%}); outliers {loss.outliers:.1%}"
    rank = "" if loss.rank is None else f"; effective rank {loss.rank:.2f} of its inputs"
    if _uncompensated(loss) > 1:
        return f"removed parts add up: the error is {_uncompensated(loss):.2f} x their share (median {left:.2f}){rank}"
    return f"remaining weights compensate {1 - _uncompensated(loss):.0%} of the loss (median {1 - left:.0%}){rank}"


def _uncompensated(loss: Loss) -> float:
    """The part of the removed share that the remaining weights do not compensate: error / removed, 1 if none."""
    return max(loss.error, SMALLEST) / max(loss.removed, SMALLEST)


def _grid(number: int, step: Step) -> Layers:
    """The grid of `step`."""
    places = {name: _place(name) for name in step.losses}
    short = _shortened(dict.fromkeys(matrix for _, matrix in places.values()))
    cells = {name: (block, short[matrix]) for name, (block, matrix) in places.items()}
    return Layers(
        _title(number, step),
        tuple(sorted({block for block, _ in cells.values()})),
        tuple(dict.fromkeys(matrix for _, matrix in cells.values())),
        {cells[name]: loss for name, loss in step.losses.items()},
        {cells[name]: step.sparsity.get(name, 0.0) for name in step.losses},
    )


def _title(number: int, step: Step) -> str:
    """The label of a step."""
    return f"step {number}, {step.technique}"


def _place(name: str) -> tuple[int, str]:
    """Block number and matrix name: (3, "mlp.up_proj") of "model.layers.3.mlp.up_proj.weight"."""
    match = re.fullmatch(r".*?\.(\d+)\.(.+)\.weight", name)
    return (int(match[1]), match[2]) if match else (0, name)


def _shortened(names: Mapping[str, None]) -> dict[str, str]:
    """The last part of each name, or the whole name if that is ambiguous."""
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {name: part if last.count(part) == 1 else name for name, part in zip(names, last, strict=True)}


def _table(layers: Layers) -> list[str]:
    """One line per block: zeros, the error of each matrix, and the reason for the worst if that is above the median."""
    measure = next(iter(layers.losses.values())).measure
    widths = {matrix: max(len(matrix), 7) + 2 for matrix in layers.matrices}
    head = "".join(f"{matrix:>{widths[matrix]}}" for matrix in layers.matrices)
    lines = [f"{layers.title}: relative output error, {MEASURES[measure]}", f"{'block':>5}{'zeros':>8}{head}"]
    all_losses = list(layers.losses.values())
    middle = median(loss.error for loss in all_losses)
    for block in layers.blocks:
        row = {matrix: layers.losses[block, matrix] for matrix in layers.matrices if (block, matrix) in layers.losses}
        zeros = sum(layers.sparsity[block, matrix] for matrix in row) / len(row)
        errors = "".join(f"{_percent(row.get(matrix)):>{widths[matrix]}}" for matrix in layers.matrices)
        worst = max(row, key=lambda matrix: row[matrix].error)
        why = f"  {worst}: {reason(row[worst], all_losses)}" if row[worst].error > middle else ""
        lines.append(f"{block:>5}{zeros:>8.1%}{errors}{why}")
    return lines


def _percent(loss: Loss | None) -> str:
    """The error, or a dash for a block without the matrix."""
    return "-" if loss is None else f"{loss.error:.3%}"
