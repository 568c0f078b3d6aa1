"""Every layout through every instruction set of this machine, against float64 products of the unpacked weights.

The input is rounded as the kernels document it, so only the order of a few float32 additions differs.
"""

from typing import Any

import msgspec
import numpy
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.artifact.checkpoint.layouts import Balanced, Dense, Layout, Quantised, Unstructured
from server.artifact.checkpoint.packing import pack, pack_unstructured, unpack, unpack_unstructured
from server.artifact.checkpoint.quantised import dequantise, encoded, pack_quantised, unpack_codes
from server.engine.native import absent, core

pytestmark = pytest.mark.skipif(absent() is not None, reason=f"{absent()}")

SETS = [] if absent() else list(core().available())
SHAPES = [
    (1, 1, 1),
    (1, 64, 2),
    (3, 63, 9),
    (17, 65, 3),
    (33, 130, 16),
    (40, 200, 1),
    (7, 576, 5),
    (50, 320, 70),
    (5, 9, 0),
]
Array = NDArray[Any]


def multiplier(name: str, threads: int = 1) -> Any:
    return core().Multiplier(core().Pool(threads), core().choose(name)[0])


def sparse(rows: int, columns: int, keep: int | None, seed: int) -> Tensor:
    """Random weights, at most `keep` nonzero in every 64 columns; None: each with probability one half."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    order = torch.rand(rows, -(-columns // 64) * 64, generator=generator).view(rows, -1, 64)
    chosen = order < 0.5 if keep is None else order.argsort(dim=2).argsort(dim=2) < keep
    return weight * chosen.flatten(1)[:, :columns]


def stored(weight: Tensor, keep: int | None) -> tuple[Layout, dict[str, Tensor]]:
    """A bfloat16 weight in one layout; keep = 64 is dense, None unstructured."""
    columns = weight.shape[1]
    if keep == 64:
        return Dense(), {"values": weight}
    if keep is None:
        return Unstructured(count=int(weight.count_nonzero()), columns=columns), pack_unstructured(weight)
    values, mask = pack(weight, keep)
    return Balanced(keep=keep, columns=columns), {"values": values, "mask": mask}


def rounded(layout: Layout, given: Array) -> Array:
    """The input as the kernels round it: to bfloat16, or to 255 levels of each 32 columns' largest value."""
    if not isinstance(layout, Quantised):
        halves: Array = torch.from_numpy(given).bfloat16().double().numpy()
        return halves
    tokens, columns = given.shape
    runs = -(-columns // 64)
    padded = numpy.zeros((tokens, runs * 2, 32), numpy.float32)
    padded.reshape(tokens, runs * 64)[:, :columns] = given
    largest = numpy.abs(padded).max(axis=2, keepdims=True)
    safe = numpy.where(largest > 0, largest, numpy.float32(1))
    codes = numpy.rint(padded * (numpy.float32(127) / safe)).astype(numpy.float64)
    levels: Array = (codes * (largest / numpy.float32(127))).reshape(tokens, runs * 64)[:, :columns]
    return levels


def view(layout: Layout, parts: dict[str, Tensor], rows: int, columns: int) -> Any:
    """The kernels' view of the parts."""
    lines: dict[str, Any] = {"mask": None, "scales": None, "offsets": None}
    for part, kind in (
        ("values", numpy.uint8),
        ("mask", numpy.uint64),
        ("scales", numpy.uint16),
        ("offsets", numpy.uint64),
        ("minimums", numpy.uint16),
    ):
        if part in parts:
            lines[part] = parts[part].contiguous().flatten().view(torch.uint8).numpy().view(kind)
    stored_as = f"int{layout.bits}" if isinstance(layout, Quantised) else "bf16"
    group = layout.group if isinstance(layout, Quantised) else columns
    keep = 0 if "offsets" in parts else (getattr(layout, "keep", None) or 64)
    levels = getattr(layout, "levels", None)
    return core().Weight(kind=stored_as, rows=rows, columns=columns, keep=keep, group=group, levels=levels, **lines)


def tiled(weight: Any) -> Any:
    room = numpy.zeros(weight.tiled_bytes + 64, numpy.uint8)
    start = -room.ctypes.data % 64
    return weight.tiled(room[start : start + weight.tiled_bytes])


def check(layout: Layout, parts: dict[str, Tensor], exact: Array, tokens: int, name: str) -> None:
    weight = view(layout, parts, *exact.shape)
    for laid_out in (weight, tiled(weight)):
        check_products(laid_out, layout, exact, tokens, name)


def check_products(weight: Any, layout: Layout, exact: Array, tokens: int, name: str) -> None:
    rows, columns = exact.shape
    given = numpy.random.default_rng(tokens).standard_normal((tokens, columns)).astype(numpy.float32)
    given[:, ::7] *= 20
    output = numpy.full((tokens, rows), numpy.nan, numpy.float32)
    multiplier(name, threads=2).multiply([weight], given, [output])
    expected, size = rounded(layout, given) @ exact.T, numpy.abs(rounded(layout, given)) @ numpy.abs(exact).T
    assert (numpy.abs(output - expected) <= 2e-6 * size + 1e-30).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("keep", [64, 48, 32, 16, 7, None], ids=lambda keep: f"keep={keep}")
def test_bfloat16(name: str, keep: int | None) -> None:
    for seed, (rows, columns, tokens) in enumerate(SHAPES):
        weight = sparse(rows, columns, keep, seed).bfloat16()
        layout, parts = stored(weight, keep)
        if keep is None:
            assert torch.equal(unpack_unstructured(parts, columns), weight)
        elif keep < 64:
            assert torch.equal(unpack(parts["values"], parts["mask"], columns), weight)
        check(layout, parts, weight.double().numpy(), tokens, name)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("keep", [64, 48, 32, 7, None], ids=lambda keep: f"keep={keep}")
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes(name: str, keep: int | None, group: int, bits: int) -> None:
    for seed, (rows, columns, tokens) in enumerate(SHAPES):
        high = 2 ** (bits - 1)
        codes = (sparse(rows, columns, keep, seed) * high / 2).round().clamp(-high, high - 1).to(torch.int8)
        scales = (torch.rand(rows, -(-columns // group), generator=torch.Generator().manual_seed(seed)) + 0.1).half()
        layout, parts = pack_quantised(dequantise(codes, scales), scales)
        scales64 = scales.double().repeat_interleave(layout.group, dim=1)[:, :columns]
        check(layout, parts, (unpack_codes(parts, layout).double() * scales64).numpy(), tokens, name)


KINDS = ["3", "5", "6", "3 asymmetric", "4 asymmetric", "5 asymmetric", "6 asymmetric", "3 in a table"]


def coded(kind: str, rows: int, columns: int, group: int, seed: int) -> tuple[Layout, dict[str, Tensor], Array]:
    """Random dense codes of a kind of layout: layout, parts, and the exact weight."""
    generator = torch.Generator().manual_seed(seed)
    bits, _, how = kind.partition(" ")
    least = 0 if how == "asymmetric" else -(1 << (int(bits) - 1))
    codes = torch.randint(least, least + (1 << int(bits)), (rows, columns), generator=generator).to(torch.int8)
    codes[0, 0] = least + (1 << int(bits)) - 1
    scales = (torch.rand(rows, -(-columns // group), generator=generator) + 0.1).half()
    layout = Quantised(bits=int(bits), group=group, columns=columns)  # type: ignore[arg-type]
    if how == "in a table":
        levels = torch.tensor([-128, -70, -31, -3, 0, 24, 66, 127], dtype=torch.int8)
        layout = msgspec.structs.replace(layout, levels=tuple(levels.tolist()))
        codes = levels[codes.int() + 4]
    exact = codes.double() * scales.double().repeat_interleave(group, dim=1)[:, :columns]
    parts = {"scales": scales}
    if how == "asymmetric":
        minimums = -scales * torch.rand(scales.shape, generator=generator).half() * (1 << int(bits))
        exact += minimums.double().repeat_interleave(group, dim=1)[:, :columns]
        layout = msgspec.structs.replace(layout, asymmetric=True)
        parts["minimums"] = minimums
    return layout, parts | {"values": encoded(codes, layout)}, exact.numpy()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_codes_of_other_bits_tables_and_minimums(name: str, kind: str, group: int) -> None:
    for seed, (rows, columns, tokens) in enumerate(SHAPES):
        layout, parts, exact = coded(kind, rows, columns, group, seed)
        check(layout, parts, exact, tokens, name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set_gives_codes_the_same_bits_alone_and_in_a_batch(kind: str) -> None:
    layout, parts, _ = coded(kind, 70, 200, 32, 1)
    given = numpy.random.default_rng(0).standard_normal((16, 200)).astype(numpy.float32)
    first = numpy.empty((16, 70), numpy.float32)
    multiplier("portable").multiply([view(layout, parts, 70, 200)], given, [first])
    assert numpy.isfinite(first).all()
    for name, change in [(name, change) for name in SETS for change in (tiled, lambda weight: weight)]:
        matrix = change(view(layout, parts, 70, 200))
        batch, alone = numpy.empty((16, 70), numpy.float32), numpy.empty((1, 70), numpy.float32)
        multiplier(name, threads=2).multiply([matrix], given, [batch])
        assert batch.tobytes() == first.tobytes()
        one_by_one = multiplier(name)
        for token in range(16):
            one_by_one.multiply([matrix], given[token : token + 1], [alone])
            assert alone.tobytes() == first[token].tobytes()


@pytest.mark.parametrize("name", SETS)
def test_scales_of_whole_rows(name: str) -> None:
    codes = torch.randint(-128, 128, (19, 200), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    scales = torch.rand(19, 1).half()
    lines = {"values": codes.view(torch.uint8).flatten().numpy(), "mask": None, "offsets": None}
    lines["scales"] = scales.flatten().view(torch.uint8).numpy().view(numpy.uint16)
    weight = core().Weight(kind="int8", rows=19, columns=200, keep=64, group=200, **lines)
    given = numpy.random.default_rng(0).standard_normal((4, 200)).astype(numpy.float32)
    output = numpy.empty((4, 19), numpy.float32)
    multiplier(name).multiply([weight], given, [output])
    layout = Quantised(bits=8, group=128, columns=200)
    expected = rounded(layout, given) @ (codes.double() * scales.double()).numpy().T
    assert output == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_row_of_input_gives_the_same_bits_alone_and_in_a_batch(bits: int) -> None:
    weight = sparse(70, 576, 32, 1)
    layout, parts = stored(weight.bfloat16(), 32)
    if bits < 16:
        scales = torch.full((70, 9), 0.01).half()
        half = 1 << (bits - 1)
        codes = (weight * half / 3).round().clamp(-half, half - 1).to(torch.int8)
        layout, parts = pack_quantised(dequantise(codes, scales), scales)
    given = numpy.random.default_rng(0).standard_normal((16, 576)).astype(numpy.float32)
    for name, change in [(name, change) for name in core().available() for change in (tiled, lambda weight: weight)]:
        batch, alone = numpy.empty((16, 70), numpy.float32), numpy.empty((1, 70), numpy.float32)
        matrix = change(view(layout, parts, 70, 576))
        multiplier(name, threads=2).multiply([matrix], given, [batch])
        one_by_one = multiplier(name)
        for token in range(16):
            one_by_one.multiply([matrix], given[token : token + 1], [alone])
            assert (alone[0] == batch[token]).all()


def test_nan_and_infinity_are_not_hidden() -> None:
    layout, parts = stored(torch.ones(2, 64, dtype=torch.bfloat16), 64)
    for bad in (numpy.nan, numpy.inf):
        given = numpy.ones((1, 64), numpy.float32)
        given[0, 3] = bad
        output = numpy.empty((1, 2), numpy.float32)
        multiplier("").multiply([view(layout, parts, 2, 64)], given, [output])
        assert not numpy.isfinite(output).any()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"values": numpy.zeros(63, numpy.uint8)}, "the values' size is wrong"),
        ({"scales": numpy.zeros(3, numpy.uint16)}, "the scales' size is wrong"),
        ({"scales": None}, "the scales' size is wrong"),
        ({"keep": 32}, "the mask's size is wrong"),
        ({"keep": 65}, "keep is 0 to 64"),
        ({"group": 48}, "a group is 32, 64, 128 or all columns"),
        ({"kind": "int2"}, "no weights are stored as int2"),
        ({"kind": "int5"}, "the values' size is wrong"),
        ({"kind": "int4", "minimums": numpy.zeros(2, numpy.uint16)}, "the minimums' size is wrong"),
        ({"minimums": numpy.zeros(1, numpy.uint16)}, "weights with minimums are dense codes of 3 to 6 bits"),
        ({"levels": [0] * 8}, "levels go with 3 bits"),
        ({"kind": "int3", "levels": [0] * 7}, "a table has 8 levels"),
        ({"kind": "int3", "levels": [128] * 8}, "a level is -128 to 127"),
        ({"kind": "int3", "keep": 32, "mask": numpy.zeros(1, numpy.uint64)}, "weights of 3, 5 and 6 bits are dense"),
        ({"columns": 0}, "at least one column"),
        ({"rows": -1}, "rows"),
        ({"rows": 2**62, "columns": 2**31 - 1}, "larger"),
    ],
)
def test_arrays_of_wrong_sizes_are_refused(change: dict[str, Any], sentence: str) -> None:
    fits = {"kind": "int8", "rows": 1, "columns": 64, "keep": 64, "group": 64, "values": numpy.zeros(64, numpy.uint8),
            "mask": None, "scales": numpy.zeros(1, numpy.uint16), "offsets": None}  # fmt: skip
    core().Weight(**fits)
    with pytest.raises(ValueError, match=sentence):
        core().Weight(**fits | change)


def test_a_mask_of_another_count_is_refused() -> None:
    _, parts = stored(sparse(3, 100, 32, 0).bfloat16(), 32)
    parts["mask"][1, 1] ^= 1
    with pytest.raises(ValueError, match="a mask does not name 32 columns"):
        view(Balanced(keep=32, columns=100), parts, 3, 100)


def test_a_wrong_offset_is_refused() -> None:
    layout, parts = stored(sparse(3, 100, None, 0).bfloat16(), None)
    parts["offsets"] += 1
    with pytest.raises(ValueError, match="an offset does not follow from the mask"):
        view(layout, parts, 3, 100)


def test_an_instruction_set_by_name_or_a_reason() -> None:
    assert core().choose("portable")[1] == "it was asked for"
    assert core().choose()[0].name == core().available()[0]
    with pytest.raises(ValueError, match=r"choose avx512, avx2(, dotprod, neon)? or portable"):
        core().choose("sse9")
