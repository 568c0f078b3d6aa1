"""Each technique against the paper's formula done slowly, on well-conditioned data: 6 tokens for each column."""

from typing import Any, get_args

import numpy
import pytest
import torch

from pruning.passes.statistics import InputStatistics
from pruning.techniques import RIA, AnyTechnique, Magnitude, SparseGPT, Wanda
from pruning.techniques.mathematics.patterns import keep_matrix
from pruning.techniques.technique import Technique
from tests.reference import slow

ROWS, COLUMNS = 24, 192
SPARSITIES: list[tuple[float | str, Any]] = [
    (0.5, 0.5),
    (0.6, 0.6),
    ("2:4", (2, 4)),
    ("4:8", (4, 8)),
    ("32:64", (32, 64)),
]


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [rows, columns], and correlated inputs [8, tokens, columns]."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.eye(COLUMNS) + 0.3 * torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5
    inputs = torch.randn(8, COLUMNS * 6 // 8, COLUMNS, generator=generator) @ mixing
    return torch.randn(ROWS, COLUMNS, generator=generator), inputs


def pruned(technique: Technique, weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    observed = InputStatistics(technique.needs, weight.shape[1])
    for batch in (inputs[:3], inputs[3:6], inputs[6:]):
        observed.update(batch)
    result = weight.clone()
    technique.apply(result, observed.with_gradients({power: torch.ones_like(weight) for power in technique.moments}))
    return result


@pytest.mark.parametrize(("sparsity", "plain"), SPARSITIES)
def test_wanda_is_the_papers_formula_element_for_element(sparsity: float | str, plain: Any) -> None:
    weight, inputs = problem()
    result = pruned(Wanda(sparsity), weight, inputs)
    keep = torch.from_numpy(slow.wanda_mask(weight.double().numpy(), inputs.flatten(0, 1).double().numpy(), plain))
    assert torch.equal(result, weight.where(keep, torch.zeros(())))


@pytest.mark.parametrize(("sparsity", "plain"), SPARSITIES)
def test_sparsegpt_is_the_papers_algorithm_within_rounding(sparsity: float | str, plain: Any) -> None:
    weight, inputs = problem()
    result = pruned(SparseGPT(sparsity), weight, inputs)
    rows = inputs.flatten(0, 1).double().numpy()
    expected = torch.from_numpy(slow.sparsegpt(weight.double().numpy(), 2 / 8 * rows.T @ rows, plain))
    assert torch.equal(result == 0, expected == 0)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.5, 0])
@pytest.mark.parametrize(("sparsity", "plain"), SPARSITIES)
def test_ria_is_the_papers_formula(sparsity: float | str, plain: Any, power: float) -> None:
    weight, inputs = problem()
    result = pruned(RIA(sparsity, power=power), weight, inputs)
    score = slow.ria_score(weight.double().numpy(), inputs.flatten(0, 1).double().numpy(), power)
    keep = keep_matrix(torch.from_numpy(score), sparsity)
    assert torch.equal(result, weight.where(keep, torch.zeros(())))


def test_ria_with_rows_and_columns_of_zeros() -> None:
    weight, inputs = problem()
    weight[3], weight[:, 5] = 0, 0
    assert pruned(RIA(0.5), weight, inputs).isfinite().all()


def test_magnitude_removes_the_smallest_of_the_matrix() -> None:
    weight, inputs = problem()
    result = pruned(Magnitude(0.5), weight, inputs)
    threshold = numpy.median(weight.abs().numpy())
    assert torch.equal(result, weight.where(weight.abs() > threshold, torch.zeros(())))
    assert torch.equal(result != 0, keep_matrix(weight.abs(), 0.5))


@pytest.mark.parametrize("technique", get_args(AnyTechnique))
def test_removed_weights_are_plus_zero(technique: type[Technique]) -> None:
    weight, inputs = problem()
    result = pruned(technique(0.5), weight, inputs)
    assert not torch.signbit(result[result == 0]).any()


@pytest.mark.parametrize("sparsity", [0.5, "2:4", "32:64", "3:7"])
def test_updating_beats_not_updating(sparsity: float | str) -> None:
    weight, inputs = problem()

    def error(result: torch.Tensor) -> float:
        return float((inputs @ (weight - result).T).square().sum())

    without = error(pruned(Wanda(sparsity), weight, inputs))
    assert error(pruned(SparseGPT(sparsity), weight, inputs)) < 0.9 * without


def test_a_block_of_columns_holds_whole_groups() -> None:
    weight, inputs = problem()
    result = pruned(SparseGPT("3:7", block=16), weight, inputs)
    groups = (result[:, :189] != 0).view(ROWS, -1, 7)
    assert (groups.sum(dim=2) == 3).all()


@pytest.mark.parametrize("technique", get_args(AnyTechnique))
@pytest.mark.parametrize("scale", [2.0**-12, 2.0**12])
def test_with_dead_inputs_the_scale_of_the_others_does_not_matter(technique: type[Technique], scale: float) -> None:
    weight, inputs = problem()
    inputs[..., ::16] = 0
    torch.testing.assert_close(
        pruned(technique("2:4"), weight, inputs * scale), pruned(technique("2:4"), weight, inputs), rtol=0, atol=1e-4
    )


def test_dead_inputs_lose_their_weights() -> None:
    weight, inputs = problem()
    inputs[..., 7] = 0
    assert not pruned(SparseGPT(0.5), weight, inputs)[:, 7].any()
