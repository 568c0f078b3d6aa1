"""Training stages are refused before any earlier stage runs."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pruning.commands.__main__ import main
from tests.exams.outages.stages import TRAINED, layerwise

WANDA = layerwise('name = "wanda", sparsity = "2:4"')
DEPTH = 'kind = "depth"\nremove = 1\n'
NARROWER = f'kind = "shear"\nhidden = 32\n{TRAINED}\n'
RECONSTRUCT = 'kind = "reconstruct"\n'
HOARDING = TRAINED.replace("held_out = 2", "held_out = 4000")
SCARCE = "too few to hold out 4000 x 16 tokens and train on the others"


def refused(recipe: Callable[[str], Path], folder: Path, first: str, second: str) -> None:
    """Run two stages, of which the second is refused."""
    path = recipe(f"[[stages]]\n{first}\n[[stages]]\n{second}\n")
    assert main(["prune", str(path), "--output", str(folder / "out"), "--base-cache", str(folder / "base")]) == 2
    assert not (folder / "out.work" / "stage-0").exists(), "the stage before it was begun"


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (WANDA, f"{RECONSTRUCT}held_out = 11", "needs 13 sequences, but the calibration has 12"),
        (DEPTH, RECONSTRUCT + "held_out = 2", "needs the base's 3 blocks, but the model has 2: use distill"),
        (NARROWER, RECONSTRUCT + "held_out = 2", "needs the base's hidden size 64, but the model has 32: use distill"),
        (WANDA, f'kind = "distill"\n{HOARDING}', SCARCE),
        (WANDA, f'kind = "continue"\ndomains = [{{ name = "all" }}]\n{HOARDING}', SCARCE),
        (WANDA, f'kind = "shear"\nffn = 96\n{HOARDING}', SCARCE),
        (WANDA, f'kind = "distill"\nlora = {{}}\nembeddings = true\n{TRAINED}', "embeddings = true has no effect"),
    ],
)
def test_it_is_refused_before_any_work(
    recipe: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first: str,
    second: str,
    sentence: str,
) -> None:
    refused(recipe, tmp_path, first, second)
    assert sentence in capsys.readouterr().err


def test_a_missing_package_is_reported_before_any_work(
    recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(recipe, tmp_path, WANDA, f'kind = "distill"\nlora = {{}}\n{TRAINED}')
    assert "run `pip install 'secateur[lora]'` first" in capsys.readouterr().err
