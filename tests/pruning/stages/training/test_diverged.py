"""Training whose weights become NaN: the best earlier score is kept, and the record can be read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning.commands.__main__ import main
from pruning.stages.training.mixture import DomainMixture, reweigh
from pruning.stages.training.optimiser import Optimiser
from server.artifact.checkpoint.reader import Artifact

STAGE = '[[stages]]\nkind = "{}"\ntokens = 512\nlength = 32\nbatch = 4\ninterval = 2\nheld_out = 4\n{}\n'
DOMAINS = 'domains = [{ name = "low", buckets = [0, 1, 2] }, { name = "high", buckets = [3, 4, 5] }]'


@pytest.fixture(params=[1, 3])
def diverging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Has every training get a loss that is no number from some step on."""
    step = Optimiser.step

    def spoilt(self: Optimiser, loss: torch.Tensor, number: int) -> None:
        step(self, loss * float("nan") if number >= request.param else loss, number)

    monkeypatch.setattr(Optimiser, "step", spoilt)
    return int(request.param)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("distill", ""), ("distill", "quantise = { bits = 4, group = 32 }"), ("continue", DOMAINS)],
)
def test_diverged_training_is_rolled_back(
    kind: str, options: str, diverging: int, recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    path = recipe(STAGE.format(kind, options))
    assert main(["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]) == 0
    artifact = Artifact.open(tmp_path / "out")
    assert all(artifact.tensor(name).isfinite().all() for name in artifact.names())
    recovery = artifact.lineage.steps[0].recovery
    assert recovery is not None
    assert recovery.rolled_back or diverging == 3
    assert recovery.rolled_back == (recovery.after >= recovery.before)


def test_a_sheared_model_that_diverged_is_refused(
    diverging: int, recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(STAGE.format("shear", "layers = 2"))
    assert main(["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]) == 2
    assert "shearing diverged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_shares_stay_finite_whatever_the_losses_are() -> None:
    shares = reweigh(*(torch.tensor(values).double() for values in ([0.25, 0.75], [1e3, 1e3 + 1], [1.0, 1.0])))
    torch.testing.assert_close(shares, torch.tensor([1, 3 * torch.e]).double() / (1 + 3 * torch.e))
    mixture = DomainMixture((1.0, 1.0), (0.25, 0.75), (0, 0), ((2.0, 2.0),)).updated([float("nan"), float("nan")])
    assert mixture.weights == (0.25, 0.75)
