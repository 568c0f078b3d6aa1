"""Allocation by Fisher information: the predicted losses done slowly, and whole recipes at equal bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning.commands.__main__ import main
from pruning.passes.statistics import Gram, InputStatistics
from pruning.recipe.allocation import Fisher, bits_per_weight
from pruning.stages.layerwise.allocation.fisher import predicted_losses
from pruning.techniques import GPTQ, SparseGPT
from server.artifact.checkpoint.reader import Artifact

STAGE = """[[stages]]
kind = "layerwise"
technique = {{ name = "{name}", sparsity = {sparsity} }}
allocation = {{ name = "fisher"{options} }}
{more}
"""


def test_the_predicted_loss_is_the_sum_of_the_lowest_saliencies() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, variance, information = (torch.rand(shape, generator=draw) + 0.1 for shape in ((6, 128), (128,), (6,)))
    found = predicted_losses(weight, variance, information, [SparseGPT("48:64"), SparseGPT("16:64"), SparseGPT(0.25)])
    score = [[float(weight[i, j] ** 2 / variance[j] * information[i]) for j in range(128)] for i in range(6)]
    for level, keep in zip(found, (48, 16), strict=False):
        expected = sum(sum(sorted(row[start : start + 64])[: 64 - keep]) for row in score for start in (0, 64))
        assert level == pytest.approx(expected, rel=1e-5)
    assert found[2] == pytest.approx(sum(sorted(value for row in score for value in row)[: 6 * 32]), rel=1e-5)


def test_fewer_bits_cost_more_of_the_loss_and_a_kept_share_of_it() -> None:
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(128), torch.ones(6)
    two, four, half = predicted_losses(weight, *ones, [GPTQ(0, bits=2), GPTQ(0, bits=4), GPTQ("32:64", bits=4)])
    removed = predicted_losses(weight, *ones, [SparseGPT("32:64")])[0]
    rounded = weight.clone()
    observed = InputStatistics((Gram,), 128)
    observed.update(torch.eye(128)[None] * 128**0.5)
    GPTQ(0, bits=4).apply(rounded, observed)
    assert two > 5 * four
    assert four == pytest.approx(float((rounded - weight).square().sum()), rel=1e-3)  # nothing to make up for
    assert half == pytest.approx(removed + four / 2)


@pytest.mark.parametrize(
    ("technique", "bits"),
    [
        (SparseGPT("32:64"), 9),
        (SparseGPT(0.75), 5),
        (GPTQ(0, bits=4), 4),
        (GPTQ(0, bits=2), 3),
        (GPTQ("48:64", bits=8), 7),
        (GPTQ("60:64", bits=4), 4),
        (SparseGPT("62:64"), 16),
    ],
)
def test_bits_of_a_weight_are_its_kept_share_of_values_and_a_mask(technique: SparseGPT | GPTQ, bits: float) -> None:
    assert bits_per_weight(technique) == bits


def test_the_techniques_own_level_is_among_the_candidates() -> None:
    levels = [candidate.sparsity for candidate in Fisher().candidates(SparseGPT("30:64"))]
    assert levels == ["30:64", *(f"{keep}:64" for keep in range(16, 61, 4))]
    assert [round(float(c.sparsity), 2) for c in Fisher().candidates(SparseGPT(0.8))] == [
        0.8, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.85, 0.9, 0.95,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sparsity", "options", "more"),
    [
        ("sparsegpt", '"32:64"', "", ""),
        ("admm", '"32:64"', ', levels = ["24:64", "40:64"]', 'order = "sequential"\ncorrection = 0.5'),
        ("wanda", "0.5", "", ""),
        ("gptq", "0", ", bits = [3, 8]", 'objective = "loss"'),
    ],
)
def test_matrices_get_levels_of_their_own_within_the_same_bytes(
    recipe: Callable[[str], Path], tmp_path: Path, base_cache: Path, name: str, sparsity: str, options: str, more: str
) -> None:
    stage = STAGE.format(name=name, sparsity=sparsity, options=options, more=more)
    output = tmp_path / "out"
    assert main(["prune", str(recipe(stage)), "--output", str(output), "--base-cache", str(base_cache)]) == 0
    artifact = Artifact.open(output)
    step = artifact.lineage.steps[0]
    levels = step.options["allocation"]["levels"]
    assert len(set(levels.values())) > 1
    assert levels.keys() == step.sparsity.keys()
    sizes = {name: artifact.tensor(name).numel() for name in levels}
    if name == "gptq":
        bits = {name: int(level.split()[2]) for name, level in levels.items()}
        assert sum(sizes[name] * bits[name] for name in levels) <= 4 * sum(sizes.values())
        return
    zeros = sum(sizes[name] * step.sparsity[name] for name in levels)
    assert zeros >= 0.49 * sum(sizes.values())  # wanda removes whole weights of each row
    for name, level in levels.items():
        expected = 1 - int(level.split(":")[0]) / 64 if isinstance(level, str) else level
        assert step.sparsity[name] == pytest.approx(expected, abs=0.03)


def test_a_matrix_may_stay_whole_within_a_budget(
    recipe: Callable[[str], Path], tmp_path: Path, base_cache: Path
) -> None:
    options = ', bits = [3, 6], whole = true, budget = 3.5, levels = ["24:64", "48:64"]'
    stage = STAGE.format(name="gptq", sparsity='"32:64"', options=options, more="")
    output = tmp_path / "out"
    assert main(["prune", str(recipe(stage)), "--output", str(output), "--base-cache", str(base_cache)]) == 0
    artifact = Artifact.open(output)
    levels = artifact.lineage.steps[0].options["allocation"]["levels"]
    total, bits = 0, 0.0
    for name, level in levels.items():
        kept, _, width, _ = level.split()
        share = 1.0 if kept == "0.0" else int(kept.split(":")[0]) / 64
        weight = artifact.tensor(name)
        assert float((weight == 0).float().mean()) >= (0 if share == 1 else 0.99 - share)
        total += weight.numel()
        bits += weight.numel() * min(share * int(width) + 1, int(width))
    assert any(level.startswith("0.0 ") for level in levels.values())
    assert 3.2 < bits / total <= 3.5


@pytest.mark.parametrize(
    ("name", "sparsity", "options", "sentence"),
    [
        ("sparsegpt", '"2:4"', "", "allocation has one level only: give levels or bits"),
        ("sparsegpt", "0.5", ', levels = ["2:4", "32:64"]', "must all be fractions or all patterns"),
        ("gptq", '"32:64"', ", bits = [4], budget = 1", "takes 2 bits a weight, and the budget is 1: add sparser"),
        ("gptq", "0.5", ", bits = [8]", "codes of 4 bits are stored without their zeros in patterns only"),
        ("sparsegpt", "0.5", ", bits = [4, 8]", "bits and whole are for gptq, and the technique is sparsegpt"),
    ],
)
def test_what_cannot_be_allocated_is_refused(
    recipe: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    sparsity: str,
    options: str,
    sentence: str,
) -> None:
    stage = STAGE.format(name=name, sparsity=sparsity, options=options, more="")
    words = ["prune", str(recipe(stage)), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]
    assert main(words) == 2
    assert sentence in capsys.readouterr().err
