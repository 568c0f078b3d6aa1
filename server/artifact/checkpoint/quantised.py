"""Packs quantised weights into their layouts and back; codes and scales are kept bit for bit.

In memory a weight is its values and scales: values are code * scale rounded to bfloat16, and determine the codes.
"""

from typing import get_args

import msgspec
import torch
from torch import Tensor

from server.artifact.checkpoint.layouts import Group, Quantised, size_of
from server.artifact.checkpoint.packing import fullest, pack, pack_unstructured, unpack, unpack_unstructured


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """code * scale as bfloat16, multiplied in float32; codes [rows, columns], scales [rows, groups]."""
    return (codes.float() * _spread(scales, codes.shape[1])).bfloat16()


def codes_of(weight: Tensor, scales: Tensor) -> Tensor:
    """The int8 codes of a `weight` made by `dequantise` with `scales`; raises ValueError for any other weight.

    bfloat16 changes a value by at most 1/512 of itself, so an 8-bit code by at most 1/4: rounding recovers it.
    """
    steps = _spread(scales, weight.shape[1])
    codes = (weight.float() / steps.where(steps != 0, 1)).round().clamp(-128, 127).to(torch.int8)
    if not torch.equal(dequantise(codes, scales), weight.bfloat16()):
        raise ValueError("its values are not integers of at most 8 bits times its scales")
    return codes


def pack_quantised(weight: Tensor, scales: Tensor) -> tuple[Quantised, dict[str, Tensor]]:
    """The smallest layout for a `weight` made by `dequantise`, and its parts by name.

    Scales [groups, rows] mean that the weight is stored transposed, [columns, rows]. Raises ValueError if the scales do
    not match the weight.
    """
    transposed = scales.shape[0] != weight.shape[0]
    if transposed:
        weight, scales = weight.T, scales.T
    codes = codes_of(weight, scales)
    dense = Quantised(
        bits=4 if int(codes.min()) >= -8 and int(codes.max()) <= 7 else 8,
        group=_group(codes.shape[1], scales.shape[1]),
        columns=codes.shape[1],
        transposed=transposed,
    )
    layouts = [dense, msgspec.structs.replace(dense, keep=max(1, fullest(codes)))]
    if dense.bits == 8 and codes.any():
        layouts.append(msgspec.structs.replace(dense, count=int(codes.count_nonzero())))
    layout = min(layouts, key=lambda layout: size_of(layout, codes.shape[0]))
    return layout, {"scales": scales.half(), **_pack_codes(codes, layout)}


def unpack_quantised(parts: dict[str, Tensor], layout: Quantised) -> Tensor:
    """The inverse of `pack_quantised`: the bfloat16 weight; raises ValueError for an inconsistent mask."""
    weight = dequantise(unpack_codes(parts, layout), parts["scales"])
    return weight.T.contiguous() if layout.transposed else weight


def unpack_codes(parts: dict[str, Tensor], layout: Quantised) -> Tensor:
    """The int8 codes [rows, columns] from the parts of a weight."""
    values = parts["values"]
    if layout.count is not None:
        return unpack_unstructured(parts, layout.columns)
    if layout.keep is None:
        return values if layout.bits == 8 else _single(values, layout.columns)
    if layout.bits == 4:
        values = _single(values.view(*parts["mask"].shape, -1), layout.keep).flatten(1)
    return unpack(values, parts["mask"], layout.columns)


def with_zeros(parts: dict[str, Tensor], layout: Quantised) -> tuple[Quantised, dict[str, Tensor]]:
    """The same codes with their zeros stored, as layout and parts; raises ValueError for an inconsistent mask."""
    dense = msgspec.structs.replace(layout, keep=None, count=None)
    return dense, {"scales": parts["scales"], **_pack_codes(unpack_codes(parts, layout), dense)}


def _pack_codes(codes: Tensor, layout: Quantised) -> dict[str, Tensor]:
    """The parts of `codes` [rows, columns] except the scales: values, and the mask of a sparse layout."""
    if layout.count is not None:
        return pack_unstructured(codes)
    if layout.keep is None:
        return {"values": codes if layout.bits == 8 else _pairs(codes)}
    values, mask = pack(codes, layout.keep)
    if layout.bits == 4:
        values = _pairs(values.view(*mask.shape, layout.keep)).flatten(1)
    return {"values": values, "mask": mask}


def _pairs(codes: Tensor) -> Tensor:
    """4-bit codes two to a byte along the last dimension, the first in the low half."""
    halves = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2)).view(torch.uint8) & 15
    return halves[..., ::2] | halves[..., 1::2] << 4


def _single(pairs: Tensor, count: int) -> Tensor:
    """The first `count` codes in bytes that hold two each, as int8."""
    halves = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2)[..., :count]
    return (halves ^ 8).to(torch.int8) - 8  # extends the sign


def _spread(scales: Tensor, columns: int) -> Tensor:
    """The scale of each column, float32 [rows, columns]."""
    group = _group(columns, scales.shape[1])
    return scales.half().float().repeat_interleave(group, dim=1)[:, :columns]


def _group(columns: int, groups: int) -> Group:
    """The smallest group size that divides `columns` into `groups` groups; raises ValueError if there is none."""
    sizes: tuple[Group, ...] = get_args(Group)
    for size in sizes:
        if -(-columns // size) == groups:
            return size
    raise ValueError(f"{groups} scales do not fit {columns} columns in groups of 32, 64 or 128")
