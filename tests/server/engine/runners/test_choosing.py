"""The runner that is chosen for an artifact on disk, and the reason."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("server.engine.native._core")

from server.artifact.checkpoint.lineage import WEIGHTS, read
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import CheckpointWriter
from server.engine.batch import Batch, Chunk
from server.engine.choice import Choice
from server.engine.runners import Options, Runner
from server.engine.runners.choosing import Wanted, load_runner
from server.engine.sequence import Sampling, Sequence
from server.errors import ArtifactError, ConfigError
from tests.server.engine.native.tiny import prune, quantise, tiny
from tests.support.harness import LINEAGE

OPTIONS = Options(slots=2, context=64, batch_tokens=64)


def artifact(folder: Path, name: str = "llama", **config: Any) -> Path:
    """A tiny model on disk: matrices of int4 and int8 codes, balanced or not, and a head of 16 bits."""
    model = tiny(name)
    with CheckpointWriter(folder / "tiny") as writer:
        for index, (weight, values) in enumerate(model.state_dict().items()):
            if values.dim() != 2 or "head" in weight:
                writer.add(weight, values.bfloat16())
                continue
            pruned = prune(values, 32) if index % 2 else values
            rounded, scales = quantise(pruned, 4 if index % 3 else 8)
            writer.add(weight, rounded.bfloat16(), scales)
        writer.text("config.json", json.dumps({**model.config.to_dict(), **config}))
        writer.finish(LINEAGE)
    return folder / "tiny"


def chosen(path: Path, wanted: Wanted = "auto", options: Options = OPTIONS) -> tuple[Runner, Choice]:
    runner = load_runner(Artifact.open(path), wanted, options)
    return runner, runner.choices[0]


def logits(runner: Runner, ids: tuple[int, ...]) -> torch.Tensor:
    return runner.forward(Batch((Chunk(Sequence("", ids, Sampling()), 1, 0, ids, True),)))


def test_both_runners_compute_the_same_from_one_artifact(tmp_path: Path) -> None:
    path = artifact(tmp_path)
    native, native_choice = chosen(path)
    other, other_choice = chosen(path, "transformers")
    assert (native_choice.value, other_choice.value) == ("native", "transformers")
    assert native_choice.reason.startswith("the model has a plan; its matrices: ")
    assert "int4, 32 of 64" in native_choice.reason
    assert other_choice.reason == "it was asked for; LlamaForCausalLM on cpu"
    ids = tuple(range(3, 50))
    expected = logits(other, ids)
    assert float((logits(native, ids) - expected).norm() / expected.norm()) < 0.05


def test_every_choice_of_the_native_runner_says_why(tmp_path: Path) -> None:
    runner, _ = chosen(artifact(tmp_path), options=Options(slots=1, context=32, threads=2, key_bits=8))
    choices = {choice.subject: choice for choice in runner.choices}
    assert (choices["threads"].value, choices["threads"].reason) == ("2", "it was asked for")
    assert choices["keys and values"].value == "8 bits"
    assert "the processor" in choices["instructions"].reason


def test_a_model_without_a_plan_runs_with_transformers_and_says_why(tmp_path: Path) -> None:
    _, choice = chosen(artifact(tmp_path, hidden_act="gelu"))
    assert choice.value == "transformers"
    assert choice.reason.startswith("the native runner cannot be used: its activation is gelu; supported are silu")


def test_a_runner_asked_for_by_name_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='runner = "native" cannot run this model: its activation is gelu'):
        chosen(artifact(tmp_path, hidden_act="gelu"), "native")


def test_without_the_compiled_module_the_reason_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "server.engine.native._core", None)
    path = artifact(tmp_path)
    _, choice = chosen(path)
    assert (choice.value, "the C++ runtime was not built" in choice.reason) == ("transformers", True)
    with pytest.raises(ConfigError, match=r"C\+\+ runtime was not built"):
        chosen(path, "native")


def test_a_truncated_file_is_refused_before_anything_native_sees_it(tmp_path: Path) -> None:
    path = artifact(tmp_path)
    whole = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match=WEIGHTS):
        load_runner(Artifact(path, read(path), {}), "auto", OPTIONS)


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    path = artifact(tmp_path)
    whole = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(whole.replace(b'\\"bits\\":4', b'\\"bits\\":7'))
    with pytest.raises(ArtifactError, match=r"layout of .* is malformed"):
        load_runner(Artifact(path, read(path), {}), "auto", OPTIONS)
