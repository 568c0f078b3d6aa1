"""Dense to balanced and back: `unpack(*pack(weight, keep), columns)` equals `weight`, bit for bit.

Knows nothing of files; works on any dtype that torch can index.
"""

import numpy
import torch
from torch import Tensor

from server.checkpoint.layouts import GROUP, Balanced, Dense, Layout

MASK_BYTES = GROUP // 8


def pack(weight: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Split `weight` [rows, columns] into values [rows, groups * keep] and masks [rows, groups] of int64.

    A group with fewer than `keep` nonzeros is filled up with zeros, lowest column first, so that the stride is
    fixed. Raises ValueError where a group holds more than `keep` nonzeros.
    """
    grouped = _grouped(weight)  # [rows, groups, 64]
    zero = grouped == 0
    fullest = int((~zero).sum(dim=2).max()) if grouped.numel() else 0
    if fullest > keep:
        raise ValueError(f"a group of {GROUP} columns holds {fullest} nonzero values, more than keep = {keep}")
    chosen = zero.to(torch.uint8).argsort(dim=2, stable=True)[..., :keep].sort(dim=2).values  # nonzeros come first
    values = grouped.gather(2, chosen).flatten(1)
    mask = torch.ones_like(chosen).bitwise_left_shift(chosen).sum(dim=2)  # distinct bits: the sum is their union
    return values, mask


def unpack(values: Tensor, mask: Tensor, columns: int) -> Tensor:
    """Rebuild the dense [rows, columns] matrix from what `pack` returned."""
    rows, groups = mask.shape
    bits = numpy.unpackbits(mask.numpy().view(numpy.uint8), axis=1, bitorder="little")  # thrice as fast as shifts
    kept = torch.from_numpy(bits).view(torch.bool)  # [rows, groups * 64]
    dense = torch.zeros(rows, groups * GROUP, dtype=values.dtype).masked_scatter_(kept, values)
    return dense[:, :columns].contiguous()


def choose_layout(weight: Tensor) -> Layout:
    """The smallest layout that holds `weight`: balanced with the fullest group's count, where that saves bytes."""
    if weight.dim() != 2 or not weight.numel():
        return Dense()
    rows, columns = weight.shape
    grouped = _grouped(weight)
    keep = max(1, int((grouped != 0).sum(dim=2).max()))
    packed = rows * grouped.shape[1] * (keep * weight.element_size() + MASK_BYTES)
    return Balanced(keep=keep, columns=columns) if packed < weight.numel() * weight.element_size() else Dense()


def _grouped(weight: Tensor) -> Tensor:
    """View `weight` as [rows, groups, 64], the last group padded with zeros."""
    padding = -weight.shape[1] % GROUP
    padded = torch.nn.functional.pad(weight, (0, padding)) if padding else weight
    return padded.reshape(weight.shape[0], -1, GROUP)
