"""A level for each matrix: the least predicted rise of the loss at equal bytes.

A removed weight w_ij raises the loss by F_ii w_ij^2 / [H^-1]_jj: its saliency in SparseGPT, by the inputs' Gram matrix
H, times the Fisher information F_ii of the output it adds to. A rounded weight raises it so by its rounding error. One
backward pass over a few sequences gives both matrices.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from time import monotonic

import msgspec
import torch
from torch import Tensor

from pruning.errors import ModelRefused, RecipeError
from pruning.model.blocks import Blocks, weight_of
from pruning.passes.fisher import observing_gradients
from pruning.passes.gradients import Backward, BackwardView, Moments
from pruning.passes.observation import observing
from pruning.passes.statistics import Gram
from pruning.passes.sweep import Note
from pruning.recipe.allocation import Fisher, bits_per_weight
from pruning.recipe.options import Layerwise
from pruning.stages.block_weights import naming_weight
from pruning.stages.context import StageContext
from pruning.stages.layerwise.allocation.lagrangian import Option, choose_levels
from pruning.stages.layerwise.allocation.search import Allocation
from pruning.techniques import GPTQ
from pruning.techniques.mathematics.rounding import in_groups, nearest_codes, search_scales
from pruning.techniques.mathematics.sparsity import NMPattern, nm_pattern
from pruning.techniques.technique import Technique

logger = logging.getLogger(__name__)

DAMPING = 0.01
"""Added to the diagonal of the Gram matrix, in units of its mean; the techniques' default."""


def fisher(stage: Layerwise, blocks: Blocks, context: StageContext, moments: Moments | None) -> Allocation:
    """Choose the level of each matrix; raises RecipeError if the cheapest levels exceed the budget."""
    options = stage.allocation
    assert isinstance(options, Fisher)
    candidates = options.candidates(stage.technique)
    ids = context.inputs.calibration[0][: options.sequences]
    notes = Backward(blocks, ids, context.folder / "allocation").visit(PredictLosses(candidates))
    predicted: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for note in reversed(notes[1:]):
        predicted |= note["losses"]
        sizes |= note["sizes"]
    budget = options.budget or bits_per_weight(stage.technique)
    chosen = _choose(candidates, budget, predicted, sizes)
    _say(chosen)
    levels = {name: options.label(technique) for name, technique in chosen.items()}
    record = msgspec.to_builtins(options) | {"levels": levels}
    return Allocation(chosen, {"allocation": record}, sum(note["seconds"] for note in notes))


def _choose(
    candidates: Sequence[Technique],
    budget: float,
    predicted: Mapping[str, Sequence[float]],
    sizes: Mapping[str, int],
) -> dict[str, Technique]:
    """The candidate of each matrix, by weight name, in a mean of at most `budget` bits a weight."""
    prices = [bits_per_weight(candidate) for candidate in candidates]
    options = [
        [Option(sizes[name] * price, loss) for price, loss in zip(prices, losses, strict=True)]
        for name, losses in predicted.items()
    ]
    try:
        numbers = choose_levels(options, budget * sum(sizes.values()))
    except ValueError:
        raise RecipeError(
            f"even the cheapest of the levels takes {min(prices):g} bits a weight, and the budget is {budget:g}: "
            "add sparser levels or fewer bits"
        ) from None
    return {name: candidates[number] for name, number in zip(predicted, numbers, strict=True)}


def _say(chosen: Mapping[str, Technique]) -> None:
    """Log the mean bits per weight of each kind of matrix, such as `down_proj`."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for name, technique in chosen.items():
        kinds[name.split(".")[-2]].append(bits_per_weight(technique))
    means = ", ".join(f"{kind} {sum(bits) / len(bits):.1f}" for kind, bits in kinds.items())
    logger.info("mean bits per weight by kind of matrix: %s", means)


class PredictLosses:
    """A visit that notes the predicted loss of every candidate for every matrix of a block, and the matrix's size."""

    def __init__(self, candidates: Sequence[Technique]) -> None:
        self._candidates = candidates

    def __call__(self, view: BackwardView) -> Note:
        """Run the block forward and back once per sequence."""
        start = monotonic()
        linears = view.linears
        squares: dict[str, Tensor] = {}

        def see(name: str, gradients: Tensor) -> None:
            squares[name] = squares.get(name, torch.zeros(gradients.shape[1])) + gradients.square().sum(dim=0)

        with observing(linears, (Gram,), "end") as observed, observing_gradients(linears, see):
            view.run()
        losses = {}
        for name, linear in linears.items():
            if name not in observed or name not in squares:
                raise ModelRefused(f"{name} is never reached by the calibration data, so its sparsity cannot be chosen")
            with naming_weight(name):
                variance = observed[name][Gram].inverse_factor(DAMPING).diagonal().square()
            losses[name] = predicted_losses(weight_of(linear), variance, squares[name] * view.scale, self._candidates)
        sizes = {name: weight_of(linear).numel() for name, linear in linears.items()}
        return {"losses": losses, "sizes": sizes, "seconds": monotonic() - start}


def predicted_losses(
    weight: Tensor, variance: Tensor, information: Tensor, candidates: Sequence[Technique]
) -> list[float]:
    """The predicted loss of `weight` [outputs, inputs] after each of `candidates`.

    `variance` [inputs] is the diagonal of H^-1 as a column sweep sees it, U_jj^2; `information` [outputs] is F_ii.
    """
    score = weight.square() / variance * information[:, None]
    removed = {technique.sparsity: _removal_loss(score, technique.sparsity) for technique in candidates}
    rounded = {
        (technique.bits, technique.group): _rounding_loss(weight, variance, information, technique)
        for technique in candidates
        if isinstance(technique, GPTQ)
    }
    losses = []
    for technique in candidates:
        loss = removed[technique.sparsity]
        if isinstance(technique, GPTQ):
            groups = nm_pattern(technique.sparsity)
            kept = groups.keep / groups.columns if groups else 1 - float(technique.sparsity)
            loss += kept * rounded[technique.bits, technique.group]
        losses.append(loss)
    return losses


def _removal_loss(score: Tensor, sparsity: float | str) -> float:
    """The sum of the scores [outputs, inputs] that `sparsity` removes."""
    groups: NMPattern | None = nm_pattern(sparsity)
    if groups is None:
        count = int(score.numel() * float(sparsity))
        return float(score.flatten().topk(count, largest=False, sorted=False).values.sum(dtype=torch.float64))
    grouped = score.unfold(1, groups.columns, groups.columns)
    lowest = grouped.topk(groups.columns - groups.keep, dim=-1, largest=False, sorted=False).values
    return float(lowest.sum(dtype=torch.float64))


def _rounding_loss(weight: Tensor, variance: Tensor, information: Tensor, technique: GPTQ) -> float:
    """The predicted loss of rounding every weight to the codes of `technique`."""
    grouped = in_groups(weight, technique.group)
    importance = in_groups((1 / variance)[None], technique.group)
    scale = search_scales(grouped, importance, technique.bits)[..., None]
    error = grouped - nearest_codes(grouped, scale, technique.bits) * scale
    return float((error.square() * importance * information[:, None, None]).sum(dtype=torch.float64))
