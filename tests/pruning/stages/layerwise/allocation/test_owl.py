"""OWL against its definition in plain numpy, and through a whole recipe."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.commands.__main__ import main
from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.passes.sweep import Sweep
from pruning.stages.inputs import base_artifact
from pruning.stages.layerwise.allocation.owl import MeasureOutliers, outlier_share, owl_sparsities
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny

STAGE = """[[stages]]
kind = "layerwise"
technique = {{ name = "magnitude", sparsity = {sparsity} }}
allocation = {{ name = "owl", outliers = 2, spread = {spread} }}
"""


def test_the_outliers_are_those_above_a_multiple_of_the_mean_of_the_block() -> None:
    scores = [torch.rand(5, 7) ** 6, 3 * torch.rand(4, 5) ** 6]
    flat = numpy.concatenate([score.double().numpy().ravel() for score in scores])
    for times in (1.5, 3, 5):
        assert outlier_share(scores, times) == sum(value > times * flat.mean() for value in flat) / 55


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.3, 0.7), st.floats(0.01, 0.14))
def test_the_mean_is_kept_and_more_outliers_lose_less(shares: list[float], sparsity: float, spread: float) -> None:
    fractions = owl_sparsities(shares, sparsity, spread)
    assert numpy.mean(fractions) == pytest.approx(sparsity)
    assert numpy.ptp(fractions) == pytest.approx(2 * spread if len(set(shares)) > 1 else 0)
    assert all(0 < fraction < 1 for fraction in fractions)
    order = numpy.argsort(shares, kind="stable")
    assert (numpy.diff(numpy.array(fractions)[order]) <= 1e-12).all()


def test_it_is_the_papers_formula() -> None:
    assert owl_sparsities([0.0, 0.5, 1.0, 0.5], 0.7, 0.08) == pytest.approx([0.78, 0.70, 0.62, 0.70])


def test_blocks_lose_different_fractions(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]
    assert main(["prune", str(recipe(STAGE.format(sparsity=0.5, spread=0.1))), *arguments]) == 0
    [step] = Artifact.open(tmp_path / "out").lineage.steps
    blocks = [step.sparsity[f"model.layers.{index}.mlp.up_proj.weight"] for index in range(6)]
    assert numpy.mean(list(step.sparsity.values())) == pytest.approx(0.5, abs=1e-3)
    assert numpy.ptp(blocks) == pytest.approx(0.2, abs=1e-3)
    record = step.options["allocation"]
    assert {"name": "owl", "outliers": 2, "spread": 0.1}.items() <= record.items()
    assert record["levels"] == pytest.approx(blocks, abs=1e-3)


@pytest.mark.parametrize("kind", ["llama", "opt"])  # OPT hands the tokens of all sequences to its MLP in one row
def test_the_outliers_are_the_same_in_batches_of_any_size(kind: str, tmp_path: Path) -> None:
    artifact = base_artifact(str(tiny.save(tmp_path / "model", kind)), tmp_path / "cache")
    ids = torch.randint(0, 256, (5, 24), generator=torch.Generator().manual_seed(0))
    shares = []
    for batch in (1, 2, 5):
        blocks = Blocks(base.skeleton(artifact.config), artifact)
        notes = Sweep(blocks, ids, batch, tmp_path / f"{batch}").visit(MeasureOutliers(2.0), "measuring", 1)
        shares.append([note["outliers"] for note in notes])
    assert min(shares[0]) > 0
    assert shares[1] == pytest.approx(shares[0], abs=2e-4)
    assert shares[2] == pytest.approx(shares[0], abs=2e-4)


@pytest.mark.parametrize(
    ("sparsity", "spread", "sentence"),
    [
        ('"2:4"', 0.08, 'allocation needs a fraction such as 0.6, and sparsity is "2:4" - at `$.stages[0]`'),
        ("0.1", 0.08, "twice the spread 0.08 must be below both sparsity and 1 - sparsity"),
        ("0.9", 0.08, "twice the spread 0.08 must be below"),
    ],
)
def test_what_cannot_be_allocated_is_refused(
    recipe: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sparsity: str,
    spread: float,
    sentence: str,
) -> None:
    assert (
        main(["prune", str(recipe(STAGE.format(sparsity=sparsity, spread=spread))), "--output", str(tmp_path / "out")])
        == 2
    )
    assert sentence in capsys.readouterr().err
