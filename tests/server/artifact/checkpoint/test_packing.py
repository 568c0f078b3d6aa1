"""Packing against the definition, and unpack as its exact inverse."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.artifact.checkpoint.layouts import Balanced, Dense, LayoutTable, Unstructured, size_of
from server.artifact.checkpoint.packing import choose_layout, pack, pack_unstructured, unpack, unpack_unstructured


def sparse(rows: int, columns: int, keep: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A random matrix with at most `keep` nonzeros in every 64 columns."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    for start in range(0, columns, 64):
        group = weight[:, start : start + 64]
        order = torch.rand(group.shape, generator=generator).argsort(dim=1)
        group[order >= keep] = 0
    return weight.to(dtype)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 200),
    keep=st.integers(1, 64),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_unpack_is_the_inverse_of_pack(rows: int, columns: int, keep: int, dtype: torch.dtype, seed: int) -> None:
    weight = sparse(rows, columns, keep, dtype, seed)
    values, mask = pack(weight, keep)
    assert values.shape == (rows, -(-columns // 64) * keep)
    assert torch.equal(unpack(values, mask, columns), weight)


def test_mask_and_values_follow_the_definition() -> None:
    weight = sparse(3, 128, 24, torch.float32, seed=1)
    values, mask = pack(weight, 24)
    for row in range(3):
        for group in range(2):
            bits = int(mask[row, group]) & (2**64 - 1)
            columns = [i for i in range(64) if bits >> i & 1]
            assert len(columns) == 24
            expected = [float(weight[row, group * 64 + i]) for i in columns]
            assert values[row, group * 24 : (group + 1) * 24].tolist() == expected


def test_the_highest_column_uses_the_sign_bit() -> None:
    weight = torch.zeros(1, 64)
    weight[0, 63] = 5.0
    values, mask = pack(weight, 1)
    assert int(mask) == -(2**63)
    assert torch.equal(unpack(values, mask, 64), weight)


def test_too_many_values_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="holds 64 nonzero values, more than keep = 32"):
        pack(torch.ones(2, 64), 32)


def test_two_of_four_and_half_of_64_take_nine_sixteenths_of_the_bytes() -> None:
    for pattern in (4, 64):
        weight = torch.zeros(64, 576 // pattern, pattern, dtype=torch.bfloat16)
        weight[..., ::2] = 1.0
        weight = weight.flatten(1)
        assert choose_layout(weight) == Balanced(keep=32, columns=576)
        values, mask = pack(weight, 32)
        assert (values.nbytes + mask.nbytes) * 16 == weight.nbytes * 9


def test_a_layout_that_saves_nothing_is_not_chosen() -> None:
    assert choose_layout(torch.ones(4, 64)) == Dense()
    assert choose_layout(torch.ones(64)) == Dense()
    nearly_full = torch.ones(4, 64, dtype=torch.bfloat16)
    nearly_full[:, :4] = 0  # 60 values and a mask are 128 bytes: as many as the dense row
    assert choose_layout(nearly_full) == Dense()


@given(rows=st.integers(1, 9), columns=st.integers(1, 200), chance=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_unpack_unstructured_is_the_inverse(rows: int, columns: int, chance: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).bfloat16()
    weight[torch.rand(rows, columns, generator=generator) < chance] = 0
    parts = pack_unstructured(weight)
    assert parts["values"].tolist() == [weight[weight != 0].tolist()]
    assert parts["offsets"].flatten().tolist() == [int((weight[:row] != 0).sum()) for row in range(rows)]
    assert torch.equal(unpack_unstructured(parts, columns), weight)


@pytest.mark.parametrize("shape", [(128, 192), (3, 5)])
def test_a_transposed_view_is_packed_by_its_values(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape).T
    weight[::2] = 0
    parts, expected = pack_unstructured(weight), pack_unstructured(weight.contiguous())
    assert all(torch.equal(parts[name], expected[name]) for name in expected)
    assert torch.equal(unpack_unstructured(parts, shape[0]), weight)


def test_weights_without_a_pattern_are_stored_unstructured() -> None:
    weight = torch.randn(64, 576, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[torch.rand(64, 576, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    layout = choose_layout(weight)
    assert layout == Unstructured(count=int((weight != 0).sum()), columns=576)
    assert sum(part.nbytes for part in pack_unstructured(weight).values()) == size_of(layout, 64) < weight.nbytes * 0.6
    assert LayoutTable.of({"a": layout}).version == 2
    assert LayoutTable.of({"a": Balanced(keep=32, columns=576)}).version == 1


def test_offsets_that_contradict_the_mask_are_refused() -> None:
    parts = pack_unstructured(torch.eye(3))
    parts["offsets"] = parts["offsets"] + 1
    with pytest.raises(ValueError, match="contradict the mask"):
        unpack_unstructured(parts, 3)


@pytest.mark.slow
def test_choosing_a_layout_takes_little_memory() -> None:
    """A process of its own, since the peak of this one is already behind it."""
    code = """
import resource, torch
from server.artifact.checkpoint.packing import choose_layout
weight = torch.ones(32768, 2048, dtype=torch.bfloat16)
weight[1:, ::2] = 0
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
layout = choose_layout(weight)
print(layout.count, peak() - before, weight.nbytes)
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    count, grown, size = map(int, printed.split())
    assert count == 2048 + 32767 * 1024
    assert grown < size
