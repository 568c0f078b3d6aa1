"""Packs quantised weights into their layouts and back; codes, scales and minimums are kept bit for bit.

In memory a weight is its values and its grid: scales [rows, groups], or [rows, groups, 2] of a scale and a minimum for
each group. Values are code * scale + minimum rounded to bfloat16, and determine the codes.
"""

from typing import get_args

import msgspec
import numpy
import torch
from torch import Tensor

from server.artifact.checkpoint.layouts import Bits, Group, Quantised, size_of
from server.artifact.checkpoint.packing import fullest, pack, pack_unstructured, unpack, unpack_unstructured

PART = 1 << 20
"""Codes turned into a stream of bits at once: the bits take a byte each."""
TABLE_FROM = 4096
"""Codes of the smallest matrix that gets a table of levels: fewer codes have few values by chance."""


def dequantise(codes: Tensor, grid: Tensor) -> Tensor:
    """code * scale + minimum as bfloat16, computed in float32; codes [rows, columns], grid as the module says."""
    scales, minimums = _spread(grid, codes.shape[1])
    products = codes.float() * scales
    return (products if minimums is None else products + minimums).bfloat16()


def codes_of(weight: Tensor, grid: Tensor) -> Tensor:
    """The int8 codes of a `weight` made by `dequantise` with `grid`; raises ValueError for any other weight.

    bfloat16 changes a value by at most 1/512 of itself, so an 8-bit code by at most 1/4: rounding recovers it.
    Asymmetric codes are 0 to 63; where bfloat16 merges two of them, either is returned.
    """
    scales, minimums = _spread(grid, weight.shape[1])
    offsets = weight.float() if minimums is None else weight.float() - minimums
    least, most = (-128, 127) if minimums is None else (0, 63)
    codes = (offsets / scales.where(scales != 0, 1)).round().clamp(least, most).to(torch.int8)
    if not torch.equal(dequantise(codes, grid), weight.bfloat16()):
        what = "integers of at most 8 bits times its scales"
        raise ValueError(f"its values are not {what if minimums is None else 'codes of 6 bits on its grid'}")
    return codes


def pack_quantised(weight: Tensor, grid: Tensor) -> tuple[Quantised, dict[str, Tensor]]:
    """The smallest layout for a `weight` made by `dequantise`, and its parts by name.

    A grid [groups, rows] or [groups, rows, 2] means that the weight is stored transposed, [columns, rows]. Raises
    ValueError if the grid does not match the weight.
    """
    transposed = grid.shape[0] != weight.shape[0]
    if transposed:
        weight, grid = weight.T, grid.transpose(0, 1)
    return pack_codes(codes_of(weight, grid), grid, transposed=transposed)


def pack_codes(codes: Tensor, grid: Tensor, *, transposed: bool = False) -> tuple[Quantised, dict[str, Tensor]]:
    """The smallest layout for int8 `codes` [rows, columns] on `grid`, and its parts by name."""
    layout = smallest_layout(codes, grid, transposed=transposed)
    return layout, {**_grid_parts(grid), **_pack_codes(codes, layout)}


def smallest_layout(codes: Tensor, grid: Tensor, *, transposed: bool = False) -> Quantised:
    """The smallest layout for int8 `codes` [rows, columns] on `grid`."""
    asymmetric = grid.dim() == 3
    dense = Quantised(
        bits=fewest_bits(codes, asymmetric),
        group=_group(codes.shape[1], grid.shape[1]),
        columns=codes.shape[1],
        transposed=transposed,
        asymmetric=asymmetric,
    )
    layouts = [dense] if asymmetric else _symmetric(dense, codes)
    return min(layouts, key=lambda layout: size_of(layout, codes.shape[0]))


def unpack_quantised(parts: dict[str, Tensor], layout: Quantised) -> Tensor:
    """The inverse of `pack_quantised`: the bfloat16 weight; raises ValueError for an inconsistent mask."""
    weight = dequantise(unpack_codes(parts, layout), grid_of(parts))
    return weight.T.contiguous() if layout.transposed else weight


def grid_of(parts: dict[str, Tensor]) -> Tensor:
    """The grid from the parts of a weight: scales [rows, groups], or with minimums [rows, groups, 2]."""
    scales = parts["scales"]
    return torch.stack([scales, parts["minimums"]], dim=2) if "minimums" in parts else scales


def unpack_codes(parts: dict[str, Tensor], layout: Quantised) -> Tensor:
    """The int8 codes [rows, columns] from the parts of a weight."""
    values = parts["values"]
    if layout.count is not None:
        return unpack_unstructured(parts, layout.columns)
    if layout.keep is None:
        return _decoded(values, layout, layout.columns)
    codes = _decoded(values.view(*parts["mask"].shape, -1), layout, layout.keep).flatten(1)
    return unpack(codes, parts["mask"], layout.columns)


def with_zeros(parts: dict[str, Tensor], layout: Quantised) -> tuple[Quantised, dict[str, Tensor]]:
    """The same codes with their zeros stored, as layout and parts; raises ValueError for an inconsistent mask."""
    codes = unpack_codes(parts, layout)
    dense = msgspec.structs.replace(layout, keep=None, count=None)
    if layout.levels and layout.keep:  # the table need not have a zero
        dense = msgspec.structs.replace(dense, levels=None, bits=fewest_bits(codes, asymmetric=False))
    return dense, {**_grid_parts(grid_of(parts)), **_pack_codes(codes, dense)}


def widened(parts: dict[str, Tensor], layout: Quantised) -> tuple[Quantised, dict[str, Tensor]]:
    """The same symmetric codes in a byte each, with the same mask, as layout and parts."""
    wide = msgspec.structs.replace(layout, bits=8, levels=None)
    values = parts["values"]
    if layout.keep is None:
        return wide, {**parts, "values": _decoded(values, layout, layout.columns)}
    codes = _decoded(values.view(*parts["mask"].shape, -1), layout, layout.keep)
    return wide, {**parts, "values": codes.flatten(1)}


def _symmetric(dense: Quantised, codes: Tensor) -> list[Quantised]:
    """The layouts that can hold symmetric `codes`, `dense` among them."""
    balanced = msgspec.structs.replace(dense, keep=max(1, fullest(codes)))
    layouts = [dense, balanced]
    if dense.bits == 8 and codes.any():
        layouts.append(msgspec.structs.replace(dense, count=int(codes.count_nonzero())))
    if codes.numel() >= TABLE_FROM:
        layouts += [with_levels(layout, codes) for layout in (dense, balanced)]
    return layouts


def with_levels(layout: Quantised, codes: Tensor) -> Quantised:
    """`layout` with a table of the values of `codes`, where that takes fewer bits; else `layout` itself."""
    present = set(numpy.unique(codes.numpy()).tolist())
    runs = -(-codes.shape[1] // 64)
    if layout.keep and int(codes.count_nonzero()) == codes.shape[0] * runs * layout.keep:
        present.discard(0)  # no run is filled up with zeros
    bits: Bits = 3 if len(present) <= 8 else 4
    if not present or len(present) > 16 or bits >= layout.bits:
        return layout
    levels = sorted(present)
    levels += levels[-1:] * ((1 << bits) - len(levels))
    return msgspec.structs.replace(layout, bits=bits, levels=tuple(levels))


def fewest_bits(codes: Tensor, asymmetric: bool) -> Bits:
    """The fewest bits that hold every code."""
    least, most = int(codes.min()), int(codes.max())
    sizes: tuple[Bits, ...] = get_args(Bits)
    for bits in sizes:
        start = 0 if asymmetric else -(1 << (bits - 1))
        if start <= least and most < start + (1 << bits):
            return bits
    raise ValueError(f"codes from {least} to {most} do not fit 8 bits")


def _pack_codes(codes: Tensor, layout: Quantised) -> dict[str, Tensor]:
    """The parts of `codes` [rows, columns] except the grid: values, and the mask of a sparse layout."""
    if layout.count is not None:
        return pack_unstructured(codes)
    if layout.keep is None:
        return {"values": encoded(codes, layout)}
    values, mask = pack(codes, layout.keep)
    return {"values": encoded(values.view(*mask.shape, layout.keep), layout).flatten(1), "mask": mask}


def encoded(codes: Tensor, layout: Quantised) -> Tensor:
    """int8 codes [..., count] as they are stored, [..., bytes]."""
    if layout.levels:
        table = torch.zeros(256, dtype=torch.uint8)
        table[torch.tensor(layout.levels, dtype=torch.int8).view(torch.uint8).long()] = torch.arange(
            len(layout.levels), dtype=torch.uint8
        )
        codes = torch.cat([table[part.view(torch.uint8).int()] for part in _pieces(codes)]).view(torch.int8)
    if layout.bits == 8:
        return codes
    return _pairs(codes) if layout.bits == 4 else _stream(codes, layout.bits)


def _decoded(values: Tensor, layout: Quantised, count: int) -> Tensor:
    """The inverse of `encoded`: int8 [..., count]."""
    if layout.bits == 8:
        return values
    codes = _single(values, count) if layout.bits == 4 else _of_stream(values, layout.bits, count)
    if layout.levels:
        table = torch.tensor(layout.levels, dtype=torch.int8)
        return torch.cat([table[part.int()] for part in _pieces(codes)])
    if layout.asymmetric:
        return codes.view(torch.int8)
    half = 1 << (layout.bits - 1)
    return (codes ^ half).view(torch.int8) - half  # extends the sign


def _pieces(codes: Tensor) -> tuple[Tensor, ...]:
    """`codes` split along the first dimension into pieces of about `PART` values."""
    return torch.split(codes, max(1, PART * codes.shape[0] // max(codes.numel(), 1)))


def _stream(codes: Tensor, bits: int) -> Tensor:
    """The low `bits` of codes [..., count] as a stream of bits, uint8 [..., ceil(count * bits / 8)]."""
    made = []
    for piece in _pieces(codes):
        ones = numpy.unpackbits(piece.contiguous().view(torch.uint8).numpy()[..., None], axis=-1, bitorder="little")
        stream = ones[..., :bits].reshape(*piece.shape[:-1], -1)
        made.append(torch.from_numpy(numpy.packbits(stream, axis=-1, bitorder="little")))
    return torch.cat(made)


def _of_stream(stream: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of a stream of bits, uint8 [..., count]."""
    made = []
    for piece in torch.split(stream, max(1, PART * stream.shape[0] // max(stream.numel(), 1))):
        ones = numpy.unpackbits(piece.contiguous().numpy(), axis=-1, bitorder="little", count=count * bits)
        codes = numpy.packbits(ones.reshape(*piece.shape[:-1], count, bits), axis=-1, bitorder="little")
        made.append(torch.from_numpy(codes[..., 0]))
    return torch.cat(made)


def _pairs(codes: Tensor) -> Tensor:
    """4-bit codes two to a byte along the last dimension, the first in the low half."""
    halves = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2)).view(torch.uint8) & 15
    return halves[..., ::2] | halves[..., 1::2] << 4


def _single(pairs: Tensor, count: int) -> Tensor:
    """The first `count` codes in bytes that hold two each, as uint8."""
    return torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2)[..., :count]


def _grid_parts(grid: Tensor) -> dict[str, Tensor]:
    """Scales, and minimums where there are any, as stored."""
    if grid.dim() == 2:
        return {"scales": grid.half()}
    return {"scales": grid[..., 0].half().contiguous(), "minimums": grid[..., 1].half().contiguous()}


def _spread(grid: Tensor, columns: int) -> tuple[Tensor, Tensor | None]:
    """The scale and the minimum, if any, of each column, float32 [rows, columns]."""
    group = _group(columns, grid.shape[1])
    spread = grid.half().float().repeat_interleave(group, dim=1)[:, :columns]
    return (spread, None) if grid.dim() == 2 else (spread[..., 0], spread[..., 1])


def _group(columns: int, groups: int) -> Group:
    """The smallest group size that divides `columns` into `groups` groups; raises ValueError if there is none."""
    sizes: tuple[Group, ...] = get_args(Group)
    for size in sizes:
        if -(-columns // size) == groups:
            return size
    raise ValueError(f"{groups} scales do not fit {columns} columns in groups of 32, 64 or 128")
