"""Quantised layouts: exact inverses on codes and scales, the definition byte by byte, and malformed files refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.artifact.checkpoint.layouts import LayoutTable, Packed, Quantised, Unstructured, size_of
from server.artifact.checkpoint.lineage import Base, Lineage, read
from server.artifact.checkpoint.quantised import (
    codes_of,
    dequantise,
    pack_quantised,
    unpack_codes,
    unpack_quantised,
    widened,
    with_zeros,
)
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import CheckpointWriter
from server.errors import ArtifactError

RECORD = Lineage(created="2026-11-25T00:00:00Z", base=Base(name="tiny", digest="0"), recipe={}, steps=(), versions={})


def quantised(rows: int, columns: int, bits: int, group: int, keep: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random codes of exactly `bits` with `keep` nonzeros in 64 columns, and scales of either sign."""
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    codes = torch.randint(1, half, (rows, columns), generator=generator).to(torch.int8)
    codes *= torch.randint(0, 2, codes.shape, generator=generator).to(torch.int8) * 2 - 1
    for start in range(0, columns, 64):
        run = codes[:, start : start + 64]
        run[torch.rand(run.shape, generator=generator).argsort(dim=1) >= keep] = 0
    codes[0, codes[0].nonzero()[0]] = -half
    scales = torch.randn(rows, -(-columns // group), generator=generator) / 50
    return codes, scales.where(scales.abs() > 1e-4, 1e-4).half()


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 300),
    bits=st.sampled_from([3, 4, 5, 6, 8]),
    group=st.sampled_from([32, 64, 128]),
    keep=st.integers(1, 64),
    seed=st.integers(0, 2**31),
)
def test_codes_and_scales_come_back_exactly(
    rows: int, columns: int, bits: int, group: int, keep: int, seed: int
) -> None:
    codes, scales = quantised(rows, columns, bits, group, keep, seed)
    weight = dequantise(codes, scales)
    assert torch.equal(codes_of(weight, scales), codes)
    layout, parts = pack_quantised(weight, scales)
    assert layout.bits == bits
    assert torch.equal(unpack_codes(parts, layout), codes)
    assert torch.equal(parts["scales"], scales)
    assert torch.equal(unpack_quantised(parts, layout), weight)
    assert {part: tensor.shape[1] for part, tensor in parts.items()} == {n: p.columns for n, p in layout.parts.items()}


@pytest.mark.parametrize("keep", range(1, 64))
@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
def test_every_count_in_64_columns_takes_the_bytes_of_the_arithmetic(bits: int, keep: int) -> None:
    codes, scales = quantised(4, 192, bits, 64, keep, seed=keep)
    codes[:, :64] = 0
    codes[0, :keep] = -(2 ** (bits - 1))
    layout, parts = pack_quantised(dequantise(codes, scales), scales)
    dense, balanced = 4 * 192 * bits // 8, 4 * 3 * (-(-keep * bits // 8) + 8)
    unstructured = int(codes.count_nonzero()) + 4 * 3 * 8 + 4 * 8 if bits == 8 else dense
    least = min(dense, balanced, unstructured)
    assert ("mask" in parts, "offsets" in parts) == (least < dense, least == unstructured < min(dense, balanced))
    assert layout.keep == (keep if least == balanced < dense else None)
    assert sum(part.nbytes for part in parts.values()) == least + 4 * 3 * 2 == size_of(layout, 4)
    assert torch.equal(unpack_codes(parts, layout), codes)


def test_every_code_of_8_bits_survives_bfloat16() -> None:
    codes = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).expand(4096, 256)
    generator = torch.Generator().manual_seed(0)
    scales = (2.0 ** torch.randint(-20, 8, (4096, 2), generator=generator)) * (
        1 + torch.rand(4096, 2, generator=generator)
    )
    assert torch.equal(codes_of(dequantise(codes, scales), scales), codes)


def test_two_codes_lie_in_a_byte_the_lower_column_in_the_low_half() -> None:
    codes = torch.tensor([[1, -1, -8, 7, 3]], dtype=torch.int8)
    scales = torch.ones(1, 1)
    layout, parts = pack_quantised(dequantise(codes, scales), scales)
    assert layout == Quantised(bits=4, group=32, columns=5)
    assert parts["values"].tolist() == [[0xF1, 0x78, 0x03]]


def test_each_run_of_64_columns_begins_with_a_new_byte() -> None:
    codes = torch.zeros(1, 128, dtype=torch.int8)
    codes[0, [0, 5, 63]] = torch.tensor([1, 2, 3], dtype=torch.int8)
    codes[0, [64, 65, 127]] = torch.tensor([4, -5, 6], dtype=torch.int8)
    scales = torch.ones(1, 2)
    layout, parts = pack_quantised(dequantise(codes, scales), scales)
    assert layout == Quantised(bits=4, group=64, columns=128, keep=3)
    assert parts["values"].tolist() == [[0x21, 0x03, 0xB4, 0x06]]
    assert parts["mask"].tolist() == [[1 | 1 << 5 | -(1 << 63), 1 | 2 | -(1 << 63)]]


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 300),
    bits=st.sampled_from([3, 4, 5, 6]),
    group=st.sampled_from([32, 64, 128]),
    seed=st.integers(0, 2**31),
)
def test_asymmetric_codes_and_their_grid_come_back_exactly(
    rows: int, columns: int, bits: int, group: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator).to(torch.int8)
    codes[0, 0] = (1 << bits) - 1
    scales = torch.rand(rows, -(-columns // group), generator=generator) / 50 + 1e-3
    minimums = -scales * torch.randint(0, 1 << bits, scales.shape, generator=generator)  # groups on both sides of 0
    grid = torch.stack([scales, minimums], dim=2).half()
    weight = dequantise(codes, grid)
    each = [(codes[:, i].float() * grid[:, i // group, 0] + grid[:, i // group, 1]).bfloat16() for i in range(columns)]
    assert torch.equal(weight, torch.stack(each, dim=1))
    layout, parts = pack_quantised(weight, grid)
    assert layout == Quantised(bits=bits, group=layout.group, columns=columns, asymmetric=True)  # type: ignore[arg-type]
    assert torch.equal(unpack_codes(parts, layout), codes)
    assert torch.equal(unpack_quantised(parts, layout), weight)
    assert {part: tensor.shape[1] for part, tensor in parts.items()} == {n: p.columns for n, p in layout.parts.items()}
    if grid.shape[1] != columns:
        turned, parts = pack_quantised(weight.T, grid.transpose(0, 1))
        assert turned.transposed
        assert torch.equal(unpack_quantised(parts, turned), weight.T)


@pytest.mark.parametrize("bits", [3, 5, 6])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_codes_are_a_stream_of_bits_from_the_lowest(bits: int, asymmetric: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    least = 0 if asymmetric else -(1 << (bits - 1))
    codes = torch.randint(least, least + (1 << bits), (3, 45), generator=generator).to(torch.int8)
    codes[:, 0] = least + (1 << bits) - 1
    grid = torch.tensor([0.5, 0.25]).expand(3, 2, 2) if asymmetric else torch.full((3, 2), 0.5)
    layout, parts = pack_quantised(dequantise(codes, grid), grid)
    assert layout.bits == bits
    for row, stored in zip(codes.tolist(), parts["values"].numpy(), strict=True):
        number = int.from_bytes(stored.tobytes(), "little")
        assert [number >> (bits * i) & ((1 << bits) - 1) for i in range(45)] == [c & ((1 << bits) - 1) for c in row]
        assert number >> (bits * 45) == 0


@pytest.mark.parametrize(("values", "bits"), [(8, 3), (16, 4)])
@pytest.mark.parametrize("keep", [64, 40])
def test_few_values_are_indices_of_a_table(values: int, bits: int, keep: int) -> None:
    generator = torch.Generator().manual_seed(values)
    table = torch.randperm(127, generator=generator)[:values].to(torch.int8) * 2 - 127  # never 0
    codes = table[torch.randint(0, values, (40, 256), generator=generator)]
    pruned = torch.rand(40, 4, 64, generator=generator).argsort(dim=2).argsort(dim=2) >= keep
    codes[pruned.flatten(1)] = 0
    scales = torch.rand(40, 8, generator=generator) / 100 + 1e-3
    layout, parts = pack_quantised(dequantise(codes, scales), scales)
    assert (layout.bits, layout.keep) == (bits, None if keep == 64 else keep)
    assert layout.levels == tuple(sorted(table.tolist()))
    assert torch.equal(unpack_codes(parts, layout), codes)
    for change in (widened, with_zeros):
        other, changed = change(parts, layout)
        assert other.levels is None or other.keep is None
        assert torch.equal(unpack_codes(changed, other), codes)


def test_values_that_are_not_codes_times_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="not integers of at most 8 bits times its scales"):
        pack_quantised(torch.tensor([[1.0, 0.5]]), torch.ones(1, 1))
    with pytest.raises(ValueError, match="not integers of at most 8 bits"):
        pack_quantised(torch.tensor([[128.0]]), torch.ones(1, 1))
    with pytest.raises(ValueError, match="7 scales do not fit 128 columns in groups of 32, 64 or 128"):
        pack_quantised(torch.ones(1, 128), torch.ones(1, 7))
    with pytest.raises(ValueError, match="not codes of 6 bits on its grid"):
        pack_quantised(torch.tensor([[1.0, 0.5]]), torch.ones(1, 1, 2))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_file_is_written_in_the_oldest_version_that_knows_its_layouts(version: int) -> None:
    old = Quantised(bits=4, group=32, columns=64)
    new: dict[int, Packed] = {1: old, 2: Unstructured(count=3, columns=64)}
    new[3] = Quantised(bits=4, group=32, columns=64, asymmetric=True)
    assert LayoutTable.of({"a": old, "b": new[version]}).version == version


def write(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """An artifact with one quantised weight of each kind and an ordinary one; returns the weights and their scales."""
    weights: dict[str, tuple[Tensor, Tensor]] = {}
    for bits in (4, 8):
        for name, keep in (("dense", 64), ("half", 32)):
            codes, scales = quantised(8, 256, bits, 64, keep, seed=bits + keep)
            weights[f"{name}{bits}.weight"] = dequantise(codes, scales), scales
    weight, scales = weights["half4.weight"]
    weights["turned.weight"] = weight.T, scales.T
    with CheckpointWriter(path) as writer:
        writer.text("config.json", "{}")
        writer.add("norm.weight", torch.ones(32))
        for name, (weight, scales) in weights.items():
            writer.add(name, weight, scales)
        writer.finish(RECORD)
    return weights


def test_an_artifact_returns_dequantised_weights(tmp_path: Path) -> None:
    weights = write(tmp_path / "model")
    artifact = Artifact.open(tmp_path / "model")
    assert artifact.names() == sorted([*weights, "norm.weight"])
    for name, (weight, scales) in weights.items():
        assert artifact.tensor(name).dtype == torch.bfloat16
        assert torch.equal(artifact.tensor(name), weight)
        stored = artifact.scales(name)
        assert stored is not None
        assert torch.equal(stored, scales)
    assert artifact.scales("norm.weight") is None
    keeps = {name: layout.keep for name in weights if isinstance(layout := artifact.layout(name), Quantised)}
    half = {"half4.weight": 32, "half8.weight": 32, "turned.weight": 32}
    assert keeps == {"dense4.weight": None, "dense8.weight": None} | half


def test_the_file_is_as_large_as_the_arithmetic_says(tmp_path: Path) -> None:
    write(tmp_path / "model")
    content = (tmp_path / "model" / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    scales = 4 * 2
    dense4, dense8, half4, half8 = 128, 256, 4 * (16 + 8), 4 * (32 + 8)
    assert len(content) - header == 32 * 4 + 8 * (dense4 + dense8 + 2 * half4 + half8 + 5 * scales)


def test_an_unpacked_artifact_has_the_values_and_no_layouts(tmp_path: Path) -> None:
    codes, scales = quantised(8, 256, 4, 64, 32, seed=0)
    with CheckpointWriter(tmp_path / "model", packed=False) as writer:
        writer.text("config.json", "{}")
        writer.add("a.weight", dequantise(codes, scales), scales)
        writer.finish(RECORD)
    loaded = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    assert list(loaded) == ["a.weight"]
    assert torch.equal(loaded["a.weight"], dequantise(codes, scales))


def damage(path: Path, change: Any) -> None:
    """Write the weights file anew after `change(tensors, table)`."""
    file = path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    table = json.loads(metadata["secateur"])
    tensors = safetensors.torch.load_file(file)
    change(tensors, table)
    safetensors.torch.save_file(tensors, file, {"format": "pt", "secateur": json.dumps(table)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda _, t: t["layouts"]["half4.weight"].update(bits=7), "layout of half4.weight is malformed.*7"),
        (lambda _, t: t["layouts"]["half4.weight"].update(group=48), "layout of half4.weight is malformed.*48"),
        (lambda _, t: t["layouts"]["half4.weight"].update(keep=65), "layout of half4.weight is malformed.*<= 64"),
        (lambda _, t: t["layouts"]["half4.weight"].update(layout="x"), "layout of half4.weight is malformed.*'x'"),
        (lambda _, t: t["layouts"]["half4.weight"].update(columns=0), "layout of half4.weight is malformed.*>= 1"),
        (lambda _, t: t["layouts"]["half4.weight"].update(columns=320), r"weight half4.weight .*needs U8 \[8, 80\]"),
        (lambda _, t: t["layouts"]["half4.weight"].update(keep=31, bits=8), r"half4.weight .*needs I8 \[8, 124\]"),
        (lambda _, t: t["layouts"]["dense8.weight"].update(group=32), r"weight dense8.weight .*needs F16 \[8, 8\]"),
        (lambda _, t: t["layouts"]["half4.weight"].update(count=9), "half4.weight is malformed.*count goes with"),
        (lambda _, t: t["layouts"]["dense8.weight"].update(count=9), r"weight dense8.weight .*needs I8 \[1, 9\]"),
        (lambda _, t: t["layouts"]["half4.weight"].update(asymmetric=True), "malformed.*asymmetric codes have at most"),
        (lambda _, t: t["layouts"]["half4.weight"].update(levels=[1, 2]), "malformed.*levels are 8 integers"),
        (lambda _, t: t["layouts"]["half4.weight"].update(levels=[128] * 16), "half4.weight is malformed.*<= 127"),
        (lambda _, t: t["layouts"]["dense4.weight"].update(asymmetric=True), "dense4.weight.minimums is missing"),
        (lambda _, t: t.update(version=4), "version"),
        (lambda _, t: t.update(layouts=3), "layouts"),
        (lambda w, _: w.pop("half4.weight.mask"), "weight half4.weight .*half4.weight.mask is missing"),
        (lambda w, _: w.update({"half4.weight.mask": w["half4.weight.mask"][:7]}), r"needs I64 \[8, 4\]"),
        (lambda w, _: w.update({"half4.weight.values": torch.zeros(())}), r"half4.weight.values is F32 \[\]"),
        (lambda w, _: w.update({"dense8.weight.scales": w["dense8.weight.scales"].float()}), "scales is F32"),
        (lambda w, _: w["half4.weight.mask"].fill_(7), "weight half4.weight .*does not name 32 columns"),
    ],
)  # fmt: skip
def test_a_malformed_table_or_part_is_refused_by_file_and_tensor(tmp_path: Path, change: Any, sentence: str) -> None:
    write(tmp_path / "model")
    damage(tmp_path / "model", change)
    with pytest.raises(ArtifactError, match=rf"model\.safetensors.*{sentence}"):
        dict(Artifact(tmp_path / "model", read(tmp_path / "model"), {}).tensors())
