"""The 8-bit rival that `make bench` compares with is the artifact's base, written once."""

from pathlib import Path

import pytest

from pruning.benchmark.quantise_base import main
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny


def test_the_quantised_base_is_written_for_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_artifact(str(tiny.save(tmp_path / "model", "llama")), tmp_path / "base")
    words = [str(base.path), str(tmp_path / "made"), "--base-cache", str(tmp_path / "base")]
    for _ in range(2):  # the second finds it there
        assert main(words) == 0
    made = Artifact.open(tmp_path / "made")
    kinds = {(found.bits, found.group) for name in made.names() if isinstance(found := made.layout(name), Quantised)}
    assert kinds == {(8, 32)}
    assert main([str(tmp_path / "none"), *words[1:]]) == 2
    assert "none" in capsys.readouterr().err
