"""Weights, states and losses that are not finite are refused by name, and no artifact is written."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pruning.commands.__main__ import main
from pruning.errors import ModelRefused
from pruning.evaluation.scoring import perplexity
from pruning.model import base
from pruning.model.blocks import Blocks
from pruning.model.weights import InMemory, write_file
from pruning.passes.gradients import Moments
from pruning.stages.context import StageModel
from pruning.stages.structured.trials import RemovalTrials
from pruning.stages.training.distil.distillation import MEASURE, Distillation
from pruning.techniques.mathematics.losses import gram_loss
from server.artifact.checkpoint import lineage as record
from server.errors import ArtifactError
from tests.pruning import tiny

Write = Callable[[str], Path]
MOST = 3e38
"""Near the largest number of float32 and bfloat16."""
DISTILL = 'kind = "distill"\ntokens = 192\nlength = 16\nbatch = 2\nheld_out = 2\ninterval = 2\nlearning_rate = 0.5'


def prune(path: Path, tmp_path: Path) -> int:
    return main(["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "base")])


def changed(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """The model in `folder` with another tensor `name`."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def loud(weight: torch.Tensor) -> torch.Tensor:
    return torch.full_like(weight, MOST)


def stage(lines: str) -> str:
    return f"[[stages]]\n{lines}\n"


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of finite weights that gives no numbers for the letter Z, and a text that has a few."""
    folder = tiny.save(tmp_path_factory.mktemp("rare") / "tiny", "gemma")  # which scales up its embeddings
    letter = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Z").ids[0]
    changed(folder, "model.embed_tokens.weight", lambda weight: weight.index_fill(0, torch.tensor([letter]), MOST))
    texts = (f"Paragraph {n} says that {n} times {n} is {n * n}." + " Z" * (n % 9 == 0) for n in range(100))
    (folder.parent / "text.txt").write_text("\n\n".join(texts))
    return folder, folder.parent / "text.txt"


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (stage('kind = "awq"'), "model.layers.0.self_attn.q_proj.weight: the inputs of a layer of 64 columns are not"),
        (
            stage('kind = "width"\nkv_groups = 1\nimportance = { name = "flap" }'),
            "model.layers.0.self_attn.o_proj: the inputs of a layer of 64 columns are not finite",
        ),
        (
            stage('kind = "layerwise"\ntechnique = { name = "magnitude", sparsity = 0.5 }'),
            "model.layers.0 gets states that are not finite",
        ),
        (
            stage('kind = "layerwise"\ntechnique = { name = "obd", sparsity = 0.5 }'),
            "model.layers.0 gets states that are not finite",
        ),
        (stage('kind = "depth"\nremove = 1'), "model.layers.0 gets states that are not finite"),
        (stage('kind = "depth"\nremove = 1\nby = "angle"'), "model.layers.0 gets states that are not finite"),
        (stage('kind = "depth"\nremove = 1\nby = "perplexity"\nsequences = 12'), "is not finite, whichever block is"),
        (stage('kind = "round"'), "model.layers.0 gets states that are not finite"),
        (stage('kind = "reconstruct"\nheld_out = 2\nsteps = 2'), "model.layers.0 gets states that are not finite"),
    ],
)
def test_block_states_that_are_not_finite_name_the_block(
    recipe: Write,
    model: Path,
    text: Path,
    rare: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stages: str,
    sentence: str,
) -> None:
    path = recipe(stages)
    path.write_text(path.read_text().replace(str(model), str(rare[0])).replace(str(text), str(rare[1])))
    assert prune(path, tmp_path) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_block_that_makes_them_is_named_before_any_work(
    recipe: Write, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(tiny.save(tmp_path / "loud"), "model.layers.1.mlp.up_proj.weight", loud)
    path = recipe(stage('kind = "layerwise"\ntechnique = { name = "magnitude", sparsity = 0.5 }'))
    path.write_text(path.read_text().replace(str(model), str(folder)))
    assert prune(path, tmp_path) == 2
    assert "the states after model.layers.1 are not finite" in capsys.readouterr().err


def test_a_perplexity_that_is_none_is_refused(tmp_path: Path) -> None:
    network = tiny.build("llama")
    weights = dict(network.state_dict())
    weights["model.norm.weight"] = loud(weights["model.norm.weight"])
    windows = torch.arange(64).view(2, 32)
    with pytest.raises(ModelRefused, match="evaluating the base gives a perplexity that is not finite"):
        perplexity.perplexity(
            StageModel(network.config.to_dict(), InMemory(weights)), windows, tmp_path, "evaluating the base"
        )


def test_training_from_a_score_that_is_not_finite_is_refused(
    recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Distillation, "_measure", lambda *_: float("nan"))
    assert prune(recipe(stage(DISTILL)), tmp_path) == 2
    sentence = "distilling cannot start: the model's score on the held-out texts is not finite"
    assert capsys.readouterr().err.splitlines()[-1] == f"secateur: {sentence}"
    assert not (tmp_path / "out").exists()


def test_training_that_diverges_is_rolled_back_and_says_what_to_do(
    recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scores = itertools.chain([1.0], itertools.repeat(float("nan")))
    monkeypatch.setattr(Distillation, "_measure", lambda *_: next(scores))
    assert prune(recipe(stage(DISTILL)), tmp_path) == 0
    said = [record.message for record in caplog.records]
    sentence = "the held-out score after step 2 is not finite; choose a learning_rate below 0.5"
    assert f"distilling has diverged: {sentence}" in said
    assert f"training is rolled back: {MEASURE} was 1.0000 before, not finite after" in said


def test_a_loss_beyond_float32_is_refused() -> None:
    weight = torch.full((4, 8), 1e20)
    with pytest.raises(ModelRefused, match="so large that its output error is not finite"):
        gram_loss(weight, torch.zeros(4, 8), torch.eye(8))


def test_gradients_that_are_not_finite_name_their_weight(tmp_path: Path) -> None:
    write_file(tmp_path / "moments", {"a.weight.2": torch.full((8, 8), torch.inf)})
    with pytest.raises(ModelRefused, match=r"the gradients of a\.weight are not finite"):
        Moments([tmp_path / "moments"], (2,), 0.0).of("a.weight", torch.nn.Linear(8, 8))


def test_a_trial_whose_loss_is_not_finite_never_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny.build("llama", num_hidden_layers=3)
    blocks = Blocks(base.skeleton(network.config.to_dict()), InMemory(network.state_dict()))
    losses = iter([float("nan"), 2.0, 1.0])
    monkeypatch.setattr(RemovalTrials, "_loss", lambda *_: next(losses))
    assert [note["block"] for note in RemovalTrials(blocks, torch.arange(32).view(1, 32), tmp_path).remove(1)] == [2]


def test_an_unreadable_record_is_not_written() -> None:
    empty = record.Lineage(created="", base=record.Base("a", "b"), recipe={}, steps=(), versions={})
    step = record.Step("x", {}, {"a.weight": float("nan")}, 0.0, 1)
    assert record.encoded(empty)
    with pytest.raises(ArtifactError, match=r"a figure of the record is not finite.*sparsity"):
        record.encoded(record.Lineage(created="", base=empty.base, recipe={}, steps=(step,), versions={}))
