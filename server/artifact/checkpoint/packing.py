"""Packs dense matrices into the balanced and unstructured layouts and back, bit for bit.

Knows nothing of files; works on any dtype that torch can index.
"""

import numpy
import torch
from torch import Tensor

from server.artifact.checkpoint.layouts import RUN, Balanced, Dense, Unstructured, size_of

PART = 1 << 22
"""Values counted at once: torch takes 8 bytes for each, which for a whole embedding would be gigabytes."""


def pack(weight: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Split `weight` [rows, columns] into values [rows, runs * keep] and masks [rows, runs] of int64.

    A run with fewer than `keep` nonzeros is filled up with zeros, lowest column first, so that the stride is
    fixed. Raises ValueError if a run has more than `keep` nonzeros.
    """
    runs = _runs(weight)  # [rows, runs, 64]
    most = fullest(weight)
    if most > keep:
        raise ValueError(f"a run of {RUN} columns holds {most} nonzero values, more than keep = {keep}")
    zero = runs == 0
    chosen = zero.to(torch.uint8).argsort(dim=2, stable=True)[..., :keep].sort(dim=2).values  # nonzeros come first
    values = runs.gather(2, chosen).flatten(1)
    mask = torch.ones_like(chosen).bitwise_left_shift(chosen).sum(dim=2)  # distinct bits: the sum is their union
    return values, mask


def unpack(values: Tensor, mask: Tensor, columns: int) -> Tensor:
    """The inverse of `pack`: the dense matrix [rows, columns]; raises ValueError for an inconsistent mask."""
    runs = mask.shape[1]
    words = mask.numpy()
    keep = values.shape[1] // runs
    if (numpy.bitwise_count(words.view(numpy.uint64)) != keep).any():
        raise ValueError(f"a mask does not name {keep} columns")
    return _scatter(values, mask, columns)


def pack_unstructured(weight: Tensor) -> dict[str, Tensor]:
    """The nonzero values of `weight` [rows, columns] as [1, count], masks [rows, runs], and offsets [rows, 1]."""
    weight = weight.contiguous()  # the bits of a transposed view would be transposed
    kept = _runs(weight) != 0  # [rows, runs, 64]
    words = numpy.packbits(kept.numpy(), axis=2, bitorder="little").view(numpy.int64)[..., 0]
    counts = kept.sum(dim=(1, 2))
    return {
        "values": weight[weight != 0].unsqueeze(0),
        "mask": torch.from_numpy(words),
        "offsets": (counts.cumsum(0) - counts).unsqueeze(1),
    }


def unpack_unstructured(parts: dict[str, Tensor], columns: int) -> Tensor:
    """The inverse of `pack_unstructured`: the dense matrix [rows, columns].

    Raises ValueError if the offsets or the number of values contradict the mask.
    """
    counts = numpy.bitwise_count(parts["mask"].numpy().view(numpy.uint64)).sum(axis=1, dtype=numpy.int64)
    if (parts["offsets"].numpy()[:, 0] != counts.cumsum() - counts).any() or parts["values"].numel() != counts.sum():
        raise ValueError("the offsets or the number of values contradict the mask")
    return _scatter(parts["values"], parts["mask"], columns)


def choose_layout(weight: Tensor) -> Balanced | Unstructured | Dense:
    """The smallest layout for `weight`; the balanced one keeps the fullest run's number of values in every run."""
    if weight.dim() != 2 or not weight.numel():
        return Dense()
    rows, columns = weight.shape
    layouts: list[Balanced | Unstructured] = [Balanced(keep=max(1, fullest(weight)), columns=columns)]
    if count := sum([int(part.count_nonzero()) for part in _parts(weight)]):
        layouts.append(Unstructured(count=count, columns=columns))
    wide = weight.element_size() - 2  # bytes per value beyond the 2 that size_of counts

    def size(layout: Balanced | Unstructured) -> int:
        values = layout.parts["values"]
        return size_of(layout, rows) + (values.rows or rows) * values.columns * wide

    best = min(layouts, key=size)
    return best if size(best) < weight.numel() * weight.element_size() else Dense()


def fullest(weight: Tensor) -> int:
    """The largest number of nonzeros in any run of 64 columns, computed in pieces to save memory."""
    if not weight.numel():
        return 0
    return max(int((_runs(part) != 0).sum(dim=2).max()) for part in _parts(weight))


def _parts(weight: Tensor) -> tuple[Tensor, ...]:
    """Views of the rows of `weight` with about `PART` values each."""
    return torch.split(weight, max(PART // weight.shape[1], 1))


def _scatter(values: Tensor, mask: Tensor, columns: int) -> Tensor:
    """The matrix [rows, columns] with `values` where the bits of `mask` [rows, runs] are set, zeros elsewhere."""
    rows, runs = mask.shape
    bits = numpy.unpackbits(mask.numpy().view(numpy.uint8), axis=1, bitorder="little")  # thrice as fast as shifts
    kept = torch.from_numpy(bits).view(torch.bool)  # [rows, runs * 64]
    dense = torch.zeros(rows, runs * RUN, dtype=values.dtype).masked_scatter_(kept, values)
    return dense[:, :columns].contiguous()


def _runs(weight: Tensor) -> Tensor:
    """View `weight` as [rows, runs, 64], the last run padded with zeros."""
    padding = -weight.shape[1] % RUN
    padded = torch.nn.functional.pad(weight, (0, padding)) if padding else weight
    return padded.reshape(weight.shape[0], -1, RUN)
