"""GPTQ against the paper's algorithm done slowly; zeros stay zero, and codes are what is stored."""

import pytest
import torch
from torch import Tensor

from pruning.passes.statistics import Gram, InputStatistics
from pruning.techniques import GPTQ, SparseGPT
from pruning.techniques.mathematics.rounding import nearest_codes, search_scales
from server.artifact.checkpoint.layouts import Group
from server.artifact.checkpoint.quantised import codes_of, dequantise
from tests.reference import slow_rounding

ROWS, COLUMNS = 12, 192


def problem() -> tuple[Tensor, InputStatistics, Tensor]:
    """A weight [rows, columns], the statistics of correlated inputs, 6 tokens a column, and H in float64."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.eye(COLUMNS) + 0.3 * torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5
    inputs = torch.randn(8, COLUMNS * 6 // 8, COLUMNS, generator=generator) @ mixing
    observed = InputStatistics((Gram,), COLUMNS)
    observed.update(inputs)
    rows = inputs.flatten(0, 1).double()
    return torch.randn(ROWS, COLUMNS, generator=generator), observed, 2 / 8 * rows.T @ rows


def quantised(technique: GPTQ, weight: Tensor, observed: InputStatistics) -> tuple[Tensor, Tensor]:
    result = weight.clone()
    return result, technique.apply(result, observed)


@pytest.mark.parametrize(
    ("bits", "group", "pattern"),
    [(4, 64, (1, 1)), (4, 32, (1, 1)), (3, 128, (1, 1)), (8, 64, (1, 1)), (4, 64, (32, 64)), (4, 32, (2, 4)),
     (4, 128, (8, 64)), (4, 64, (3, 7))],
)  # fmt: skip
def test_gptq_is_the_papers_algorithm(bits: int, group: Group, pattern: tuple[int, int]) -> None:
    weight, observed, gram = problem()
    sparsity = f"{pattern[0]}:{pattern[1]}" if pattern != (1, 1) else 0.0
    result, scales = quantised(GPTQ(sparsity, bits=bits, group=group), weight, observed)  # type: ignore[arg-type]
    codes, expected = slow_rounding.gptq(weight.double().numpy(), gram.numpy(), bits, group, pattern)
    # float32 and float64 may round a weight that lies between two codes apart, and later columns then follow it
    same = codes_of(result.bfloat16(), scales) == torch.from_numpy(codes)
    assert same.double().mean() > 0.99
    torch.testing.assert_close(scales.double(), torch.from_numpy(expected), rtol=0.02, atol=0)
    assert (scales.double() == torch.from_numpy(expected)).double().mean() > 0.95


def test_rounding_follows_the_definition() -> None:
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    importance = torch.rand(32, generator=torch.Generator().manual_seed(1)) + 0.1
    for bits in (2, 3, 4, 5, 6, 8):
        scales = search_scales(weight, importance, bits)
        codes = nearest_codes(weight, scales[:, None], bits)
        for row, scale, found in zip(weight.tolist(), scales.tolist(), codes.tolist(), strict=True):
            assert scale == pytest.approx(slow_rounding.scale_of(row, importance.tolist(), bits), rel=1e-3)
            assert found == [slow_rounding.code(value, scale, bits) for value in row]


def test_a_searched_scale_beats_that_of_the_largest_weight() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    importance = torch.ones(128)
    for bits, gain in ((3, 0.8), (4, 0.9)):
        half = 2 ** (bits - 1)
        cost = {}
        for name, scale in (
            ("largest", weight.abs().amax(dim=1, keepdim=True) / (half - 1)),
            ("searched", search_scales(weight, importance, bits)[:, None]),
        ):
            cost[name] = (weight - nearest_codes(weight, scale, bits) * scale).square().sum()
        assert cost["searched"] < gain * cost["largest"]


def test_a_group_of_zeros_has_scale_zero_and_stays_zero() -> None:
    weight, observed, _ = problem()
    weight[:, 64:128] = 0
    result, scales = quantised(GPTQ(group=64), weight, observed)
    assert not scales[:, 1].any()
    assert not result[:, 64:128].any()
    assert result.isfinite().all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.75, "8:64"])
def test_zeros_stay_exactly_zero(bits: int, sparsity: float | str) -> None:
    weight, observed, _ = problem()
    SparseGPT("32:64").apply(weight, observed)
    result, _ = quantised(GPTQ(sparsity, bits=bits), weight, observed)  # type: ignore[arg-type]
    zeros = result[weight == 0]
    assert not zeros.any()
    assert not torch.signbit(zeros).any()
    assert result.any()


@pytest.mark.parametrize(("sparsity", "kept"), [(0.5, 0.5), ("2:4", 0.5), ("48:64", 0.75), ("3:7", 0.43)])
def test_the_pattern_holds_and_codes_are_what_is_stored(sparsity: float | str, kept: float) -> None:
    weight, observed, _ = problem()
    result, scales = quantised(GPTQ(sparsity, group=32), weight, observed)
    assert (result != 0).double().mean() <= kept + 0.01
    if isinstance(sparsity, str):
        keep, columns = map(int, sparsity.split(":"))
        whole = COLUMNS - COLUMNS % columns
        assert (result[:, :whole] != 0).view(ROWS, -1, columns).sum(dim=2).max() == keep
    stored = result.bfloat16()
    assert torch.equal(dequantise(codes_of(stored, scales), scales), stored)


def test_gptq_beats_rounding_to_nearest() -> None:
    weight, observed, gram = problem()

    def error(result: Tensor) -> float:
        delta = (weight - result).double()
        return float((delta @ gram * delta).sum())

    grouped = weight.view(ROWS, -1, 64)
    scales = search_scales(grouped, torch.ones(64), 4)[..., None]
    rounded = (nearest_codes(grouped, scales, 4) * scales).view(ROWS, -1)
    assert error(quantised(GPTQ(), weight, observed)[0]) < 0.9 * error(rounded)
