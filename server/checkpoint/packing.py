"""Dense to balanced and back: `unpack(*pack(weight, keep), columns)` equals `weight`, bit for bit.

Knows nothing of files; works on any dtype that torch can index.
"""

import numpy
import torch
from torch import Tensor

from server.checkpoint.layouts import RUN, Balanced, Dense

MASK_BYTES = RUN // 8


def pack(weight: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Split `weight` [rows, columns] into values [rows, runs * keep] and masks [rows, runs] of int64.

    A run with fewer than `keep` nonzeros is filled up with zeros, lowest column first, so that the stride is
    fixed. Raises ValueError where a run holds more than `keep` nonzeros.
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
    """Rebuild the dense [rows, columns] matrix from what `pack` returned; raises ValueError for a wrong mask."""
    rows, runs = mask.shape
    words = mask.numpy()
    keep = values.shape[1] // runs
    if (numpy.bitwise_count(words.view(numpy.uint64)) != keep).any():
        raise ValueError(f"a mask does not name {keep} columns")
    bits = numpy.unpackbits(words.view(numpy.uint8), axis=1, bitorder="little")  # thrice as fast as shifts
    kept = torch.from_numpy(bits).view(torch.bool)  # [rows, runs * 64]
    dense = torch.zeros(rows, runs * RUN, dtype=values.dtype).masked_scatter_(kept, values)
    return dense[:, :columns].contiguous()


def choose_layout(weight: Tensor) -> Balanced | Dense:
    """The smallest layout that holds `weight`: balanced with the fullest run's count, where that saves bytes."""
    if weight.dim() != 2 or not weight.numel():
        return Dense()
    rows, columns = weight.shape
    keep = max(1, fullest(weight))
    packed = rows * -(-columns // RUN) * (keep * weight.element_size() + MASK_BYTES)
    return Balanced(keep=keep, columns=columns) if packed < weight.numel() * weight.element_size() else Dense()


def fullest(weight: Tensor) -> int:
    """The most nonzeros that any run of 64 columns holds."""
    return int((_runs(weight) != 0).sum(dim=2).max()) if weight.numel() else 0


def _runs(weight: Tensor) -> Tensor:
    """View `weight` as [rows, runs, 64], the last run padded with zeros."""
    padding = -weight.shape[1] % RUN
    padded = torch.nn.functional.pad(weight, (0, padding)) if padding else weight
    return padded.reshape(weight.shape[0], -1, RUN)
