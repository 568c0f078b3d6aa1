"""Self-calibration against plain sampling without a KV cache, and in a recipe without text."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning.commands.__main__ import main
from pruning.data.draw import ids_digest
from pruning.data.self_calibration import BATCH, first_token, sample_base
from pruning.errors import DataError
from pruning.model import base
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact
from server.progress import Progress
from tests.pruning.conftest import SPARSEGPT

DISTILL = '[[stages]]\nkind = "distill"\ntokens = 64\nlength = 16\nbatch = 2\nheld_out = 2\n'


@pytest.fixture
def artifact(model: Path, tmp_path: Path) -> Artifact:
    return base_artifact(str(model), tmp_path / "base")


def test_samples_equal_plain_sampling_without_a_cache(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.Tensor] = []

    def likeliest(probabilities: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        chosen.append(probabilities)
        return probabilities.argmax(dim=-1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", likeliest)
    ids = sample_base(artifact, 3, 12, 0)
    network = base.load(artifact.config, artifact, torch.bfloat16)
    with torch.inference_mode():
        logits = network(input_ids=ids, use_cache=False).logits.float()
    assert (ids[:, 0] == 256).all()
    for position, probabilities in enumerate(chosen):
        torch.testing.assert_close(probabilities[:3], logits[:, position].softmax(-1), atol=2e-4, rtol=0.05)
        assert torch.equal(ids[:, position + 1], probabilities[:3].argmax(-1))


def test_temperature_is_one(artifact: Artifact) -> None:
    ids = sample_base(artifact, 400, 2, 0)[:, 1]
    network = base.load(artifact.config, artifact, torch.bfloat16)
    with torch.inference_mode():
        expected = network(input_ids=torch.tensor([[256]]), use_cache=False).logits[0, 0].float().softmax(-1)
    likely = expected > expected.median()
    assert likely[ids].float().mean().item() == pytest.approx(expected[likely].sum().item(), abs=0.08)


def test_samples_are_made_once_and_fewer_are_a_prefix_of_more(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = sample_base(artifact, 5, 10, 1)
    many = sample_base(artifact, BATCH + 3, 10, 1)
    assert many.shape == (BATCH + 3, 10)
    assert torch.equal(few, many[:5])
    assert not torch.equal(many[:3], many[BATCH:])
    assert not torch.equal(few, sample_base(artifact, 5, 10, 2))
    monkeypatch.setattr(base, "load", None)
    assert torch.equal(sample_base(artifact, BATCH + 3, 10, 1), many)


def test_a_killed_run_resumes_with_the_next_batch(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample_base(artifact, 3 * BATCH, 6, 3)
    for file in artifact.path.parent.rglob("batch-*"):
        file.unlink()
    steps: list[int] = []

    def step(_: Progress) -> None:
        steps.append(1)
        if len(steps) == 6 + 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "step", step)
    with pytest.raises(KeyboardInterrupt):
        sample_base(artifact, 3 * BATCH, 6, 3)
    steps[:] = [1] * 100
    assert torch.equal(sample_base(artifact, 3 * BATCH, 6, 3), whole)
    assert len(steps) == 100 + 2 * 6


@pytest.mark.slow
def test_a_recipe_without_text_calibrates_and_distils_on_samples(
    recipe: Callable[[str], Path], text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = recipe(SPARSEGPT + DISTILL)
    path.write_text(path.read_text().replace(f'source = "{text}"', 'source = "self"', 1))
    arguments = ["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")]
    assert main(arguments) == 0
    artifact = Artifact.open(tmp_path / "out")
    base_of = Artifact.open(next((tmp_path / "base").glob("tiny-*[!f]")))
    data = artifact.lineage.calibration
    assert data is not None
    assert (data.source, data.sequences, data.tokens) == ("self", 12, 32)
    assert data.digest == ids_digest(sample_base(base_of, 12, 32, 0))
    recovery = artifact.lineage.steps[1].recovery
    assert recovery is not None
    assert {recovery.training.source, recovery.held_out.source} == {"self"}
    assert recovery.training.digest != recovery.held_out.digest
    assert "the whole model is in memory, at 16 bits" in caplog.text
    made = (tmp_path / "out" / "lineage.json").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (tmp_path / "out" / "lineage.json").stat().st_mtime_ns == made


def test_perplexity_on_what_the_model_wrote_is_refused(
    recipe: Callable[[], Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe()
    path.write_text(path.read_text().replace(f'source = "{text}"', 'source = "self"'))
    assert main(["prune", str(path), "--output", str(tmp_path / "out")]) == 2
    assert 'source "self" is for calibration' in capsys.readouterr().err


def test_the_first_token_is_the_begin_else_the_end_of_text() -> None:
    assert first_token({"bos_token_id": 5, "eos_token_id": 6}) == 5
    assert first_token({"bos_token_id": None, "eos_token_id": [7, 8]}) == 7
    nothings: tuple[dict[str, list[int]], ...] = ({}, {"eos_token_id": []})
    for nothing in nothings:
        with pytest.raises(DataError, match="has neither bos_token_id nor eos_token_id"):
            first_token(nothing)
    with pytest.raises(DataError, match="has bos_token_id = 257, but vocab_size is 257"):
        first_token({"bos_token_id": 257, "vocab_size": 257})
