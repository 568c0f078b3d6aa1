"""What `quantise = "kept"` keeps of a quantised model: each matrix's own bits, groups, scheme and stored values."""

import torch
from torch import Tensor

from pruning.errors import ModelRefused
from pruning.model.weights import Unrounded, WeightSource
from pruning.recipe.training import Quantise
from server.artifact.checkpoint.layouts import RUN, Quantised
from server.artifact.checkpoint.quantised import codes_of, fewest_bits, smallest_layout


def kept_codes(name: str, source: WeightSource) -> Quantise:
    """The codes of the weight `name` as its layout stores them; raises ModelRefused unless it is quantised."""
    codes, layout = _stored(name, source)
    return Quantise(
        bits=fewest_bits(codes, layout.asymmetric),  # a table has fewer bits than its values
        group=layout.group,
        scheme="asymmetric" if layout.asymmetric else "symmetric",
    )


class StoredValues(WeightSource):
    """The quantised `source` with zeros exactly where its layouts store no value, and anything but zero elsewhere.

    A run with fewer values than its layout holds is filled up with its largest weights before they were rounded.
    """

    def __init__(self, source: WeightSource) -> None:
        self._source, self._unrounded = source, Unrounded(source)

    def names(self) -> list[str]:
        """All names of the source."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """1 where a value is stored, 0 elsewhere, in the shape of the weight `name`, which must be quantised."""
        codes, layout = _stored(name, self._source)
        stored = codes != 0
        if layout.keep is not None:
            before = self._unrounded.tensor(name).float()
            stored = _filled(stored, before.T if layout.transposed else before, layout.keep)
        elif layout.count is None:
            stored = torch.ones_like(stored)
        return (stored.T if layout.transposed else stored).float()


def _filled(stored: Tensor, before: Tensor, keep: int) -> Tensor:
    """`stored` [rows, columns] and the largest of the other weights `before` rounding, `keep` of each run of 64."""
    columns = stored.shape[1]
    score = before.abs().clamp(max=torch.finfo(torch.float32).max).masked_fill(stored, torch.inf)
    runs = torch.nn.functional.pad(score, (0, -columns % RUN), value=-1).view(len(score), -1, RUN)
    largest = runs.topk(keep, dim=2).indices
    return torch.zeros_like(runs, dtype=torch.bool).scatter_(2, largest, True).flatten(1)[:, :columns]


def _stored(name: str, source: WeightSource) -> tuple[Tensor, Quantised]:
    """The codes [outputs, inputs] of the weight `name`, and the layout that stores them."""
    weight, grid = source.tensor(name), source.scales(name)
    if grid is None:
        raise ModelRefused(
            f'{name} is not quantised, so quantise = "kept" has no codes to keep: quantise all blocks before, '
            "by gptq, awq or round, or give the bits, as in quantise = { bits = 4, group = 32 }"
        )
    transposed = grid.shape[0] != weight.shape[0]
    if transposed:
        weight, grid = weight.T, grid.transpose(0, 1)
    codes = codes_of(weight, grid)
    return codes, smallest_layout(codes, grid, transposed=transposed)
