"""The backward pass against torch's autograd of the whole model, and after a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.errors import ModelRefused
from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.model.weights import write_file
from pruning.passes.gradients import Backward, BackwardView, Moments, moments
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny

IDS = torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(0))
BLOCKS = 3


def blocks_of(artifact: Artifact) -> Blocks:
    blocks = Blocks(base.skeleton(artifact.config), artifact)
    blocks.check(IDS[:2, :8])
    return blocks


def imported(kind: str, folder: Path, **changes: Any) -> Artifact:
    return base_artifact(str(tiny.save(folder / "model", kind, num_hidden_layers=BLOCKS, **changes)), folder / "cache")


def autograd(artifact: Artifact, kind: str, **changes: Any) -> list[dict[str, Tensor]]:
    """The gradients of all weights, for each sequence, by transformers' own loss on the whole model."""
    model = tiny.build(kind, num_hidden_layers=BLOCKS, **changes)
    model.load_state_dict({name: tensor.float() for name, tensor in artifact.tensors()}, strict=False)
    model.tie_weights()
    result = []
    for ids in IDS:
        model.zero_grad()
        model(input_ids=ids[None], labels=ids[None], use_cache=False).loss.backward()
        result.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return result


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("qwen2", {}),
        ("gemma2", {}),  # caps its logits, ties its embeddings, and masks its blocks in turn
        ("phi3", {}),
        ("gpt2", {}),  # stores its weights transposed
        ("gpt_neox", {}),
        ("bloom", {}),
    ],
)
def test_gradients_equal_those_of_the_whole_model(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    artifact = imported(kind, tmp_path, **changes)
    blocks = blocks_of(artifact)
    expected = autograd(artifact, kind, **changes)
    seen: list[int] = []

    def visit(view: BackwardView) -> dict[str, Any]:
        seen.append(view.index)
        for number, gradients in enumerate(view.sequences()):
            assert gradients.keys() == blocks.linears(view.index).keys()
            for name, gradient in gradients.items():
                scale = float(expected[number][name].abs().max())
                torch.testing.assert_close(gradient, expected[number][name], rtol=1e-3, atol=1e-4 * scale)
        return {}

    Backward(blocks, IDS, tmp_path / "pass").visit(visit)
    assert seen == [2, 1, 0]


def test_moments_are_means_over_sequences(tmp_path: Path) -> None:
    artifact = imported("gpt2", tmp_path)
    blocks = blocks_of(artifact)
    found = moments(blocks, IDS, tmp_path / "pass", (1, 2))
    expected = autograd(artifact, "gpt2")
    for index in range(BLOCKS):
        for name, linear in blocks.linears(index).items():
            for power in (1, 2):
                mean = torch.stack([gradients[name] ** power for gradients in expected]).mean(dim=0).T
                torch.testing.assert_close(
                    found.of(name, linear)[power], mean, rtol=1e-3, atol=1e-4 * float(mean.abs().max())
                )
    assert not list((tmp_path / "pass").glob("states-*")), "the states' files were to go"


class Killed(Exception):
    pass


def killing(monkeypatch: pytest.MonkeyPatch, when: int) -> Callable[[], int]:
    """Kill the pass at its `when`-th step through a block; returns the number of steps taken."""
    original, steps = Backward.through, []

    def through(self: Backward, index: int, number: int) -> None:
        steps.append(index)
        if len(steps) == when:
            raise Killed
        original(self, index, number)

    monkeypatch.setattr(Backward, "through", through)
    return lambda: len(steps)


@pytest.mark.parametrize("when", [1, 2, 5, 9])
def test_killed_at_any_step_it_ends_with_the_identical_result(
    when: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = imported("llama", tmp_path)
    moments(blocks_of(artifact), IDS, tmp_path / "whole", (1, 2))
    with monkeypatch.context() as patch:
        killing(patch, when)
        with pytest.raises(Killed):
            moments(blocks_of(artifact), IDS, tmp_path / "pass", (1, 2))
    steps = killing(monkeypatch, 10**6)
    moments(blocks_of(artifact), IDS, tmp_path / "pass", (1, 2))
    assert steps() == len(IDS) * (BLOCKS - (when - 1) // len(IDS)), "a finished block was done again"
    moments(blocks_of(artifact), IDS, tmp_path / "pass", (1, 2))
    assert steps() == len(IDS) * (BLOCKS - (when - 1) // len(IDS)), "a finished pass was done again"
    for index in range(BLOCKS):
        name = f"moments-{index:04}.safetensors"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pass" / name).read_bytes()


def test_one_block_is_in_memory(tmp_path: Path) -> None:
    blocks = blocks_of(imported("llama", tmp_path))
    loaded: list[set[str]] = []

    def visit(view: BackwardView) -> dict[str, Any]:
        loaded.append({name.split(".")[2] for name, p in blocks.model.named_parameters() if not p.is_meta})
        for _ in view.sequences():
            pass
        return {}

    Backward(blocks, IDS, tmp_path / "pass").visit(visit)
    assert loaded == [{"2"}, {"1"}, {"0"}]


@pytest.mark.parametrize("lost", ["states-2", "gradients-*"])
def test_without_its_files_it_starts_anew(tmp_path: Path, lost: str, caplog: pytest.LogCaptureFixture) -> None:
    artifact = imported("llama", tmp_path)
    seen: list[int] = []

    def visit(view: BackwardView) -> Any:
        seen.append(view.index)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return {"sum": sum(float(tensor.sum()) for part in view.sequences() for tensor in part.values())}

    whole = Backward(blocks_of(artifact), IDS, tmp_path / "whole")
    cut = Backward(blocks_of(artifact), IDS, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.visit(visit)
    for path in (tmp_path / "cut").glob(lost):
        path.unlink()
    notes = Backward(blocks_of(artifact), IDS, tmp_path / "cut").visit(visit)
    assert "are missing in" in caplog.text
    assert [note["sum"] for note in notes[1:]] == [note["sum"] for note in whole.visit(visit)[1:]]


def test_a_layer_without_a_gradient_is_named(tmp_path: Path) -> None:
    write_file(tmp_path / "moments.safetensors", {"reached.weight.2": torch.ones(2, 2)})
    found = Moments([tmp_path / "moments.safetensors"], (2,), 0.0)
    assert torch.equal(found.of("reached.weight", torch.nn.Linear(2, 2))[2], torch.ones(2, 2))
    with pytest.raises(ModelRefused, match=r"idle\.weight is never reached by the calibration data"):
        found.of("idle.weight", torch.nn.Linear(2, 2))
