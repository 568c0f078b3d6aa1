"""What each layer of an artifact lost and why some are sensitive, from the figures in its lineage: nothing is computed.

A layer's error is what was removed of it times what the rest did not make up for. The layer is called sensitive for
whichever of the two is further above the median of all layers.
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
LEAST = 1e-12
"""What a share is taken for where it is 0, so that its logarithm exists."""


class Layers(NamedTuple):
    """The losses of one step in a grid: blocks by matrices."""

    title: str
    blocks: tuple[int, ...]
    matrices: tuple[str, ...]
    losses: Mapping[tuple[int, str], Loss]
    sparsity: Mapping[tuple[int, str], float]


def grids(lineage: Lineage) -> list[Layers]:
    """One grid for each step that changed weights layer by layer, in order."""
    return [_grid(number, step) for number, step in enumerate(lineage.steps, 1) if step.losses]


def explanation(lineage: Lineage) -> str:
    """The table as lines of text."""
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
    """Why the error of `loss` is what it is, beside the median of `others`."""
    removed = median(other.removed for other in others)
    if loss.removed < loss.error / 2:
        return f"hardly anything was removed: this is rounding; {loss.outliers:.1%} of its weights are outliers"
    left = median(_left(other) for other in others)
    heavy, stiff = log(max(loss.removed, LEAST) / max(removed, LEAST)), log(_left(loss) / left)
    if heavy >= stiff:
        return (
            f"{loss.removed:.1%} of |W| x input was in what was removed (median {removed:.1%}); "
            f"outliers {loss.outliers:.1%}"
        )
    rank = "" if loss.rank is None else f"; effective rank {loss.rank:.2f} of its inputs"
    if _left(loss) > 1:
        return f"what was removed adds up: the error is {_left(loss):.2f} x its share (median {left:.2f}){rank}"
    return f"the rest makes up for {1 - _left(loss):.0%} of what was removed (median {1 - left:.0%}){rank}"


def _left(loss: Loss) -> float:
    """The error as a share of what was removed: 1 where nothing makes up for it."""
    return max(loss.error, LEAST) / max(loss.removed, LEAST)


def _grid(number: int, step: Step) -> Layers:
    """The losses of `step` by block and matrix."""
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
    """How a step is called."""
    return f"step {number}, {step.technique}"


def _place(name: str) -> tuple[int, str]:
    """The block's number and the matrix in `model.layers.3.mlp.up_proj.weight`."""
    match = re.fullmatch(r".*?\.(\d+)\.(.+)\.weight", name)
    return (int(match[1]), match[2]) if match else (0, name)


def _shortened(names: Mapping[str, None]) -> dict[str, str]:
    """The last part of each name, or the whole name where two would be called the same."""
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {name: part if last.count(part) == 1 else name for name, part in zip(names, last, strict=True)}


def _table(layers: Layers) -> list[str]:
    """One line a block: its zeros, the error of each matrix, and why the worst is what it is if it is above median."""
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
    """The error, or a dash where the block has no such matrix."""
    return "-" if loss is None else f"{loss.error:.3%}"
