"""From a recipe to an artifact, also when killed, interrupted, or on a full disk."""

import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from pruning.commands.__main__ import main
from pruning.model import base
from pruning.passes import sweep
from pruning.passes.sweep import BlockView, Note
from pruning.recipe.recipe import read
from pruning.run import output, pipeline
from pruning.stages.inputs import base_artifact, prepare, reusable
from pruning.stages.layerwise.prune_block import PruneBlock
from server.artifact.checkpoint.reader import Artifact
from server.storage.lock import locked
from tests.pruning import tiny
from tests.pruning.conftest import SPARSEGPT
from tests.pruning.run.conftest import Prune
from tests.support.prune_process import kill_when

pytestmark = pytest.mark.slow

Write = Callable[..., Path]
DEPTH = '[[stages]]\nkind = "depth"\nremove = 2\n[[stages]]\nkind = "layerwise"\n'


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_recipe_becomes_an_artifact_with_its_lineage(
    recipe: Write, prune: Prune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe()
    assert prune(path, tmp_path / "out") == 0
    artifact = Artifact.open(tmp_path / "out")
    lineage = artifact.lineage
    assert lineage.recipe == json.loads(msgspec.json.encode(read(path)))
    [step] = lineage.steps
    assert (step.technique, step.options) == ("sparsegpt", {"sparsity": "2:4", "block": 128, "damping": 0.01})
    assert len(step.sparsity) == 6 * 7
    assert set(step.sparsity.values()) == {0.5}
    weight = artifact.tensor("model.layers.3.mlp.down_proj.weight")
    assert ((weight != 0).view(64, -1, 4).sum(dim=2) == 2).all()
    assert lineage.calibration is not None
    assert lineage.evaluation is not None
    assert lineage.evaluation.perplexity.keys() == {"found", "dense", "int8", "pruned"}
    assert lineage.evaluation.bytes["pruned"] == artifact.size < lineage.evaluation.bytes["dense"]
    assert not (tmp_path / "out.work").exists()
    table = capsys.readouterr().out
    for key in ("dense", "int8", "pruned"):
        assert f"{lineage.evaluation.bytes[key]:,}" in table
        assert f"{lineage.evaluation.perplexity[key]:.2f}" in table


def test_an_artifact_of_the_same_recipe_is_reused_and_any_other_made_anew(
    recipe: Write, prune: Prune, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = recipe()
    assert prune(path, tmp_path / "out") == 0
    made, table = (tmp_path / "out" / "lineage.json").stat().st_mtime_ns, capsys.readouterr().out
    assert prune(path, tmp_path / "out") == 0
    assert (tmp_path / "out" / "lineage.json").stat().st_mtime_ns == made
    assert capsys.readouterr().out == table
    path.write_text(path.read_text().replace("2:4", "1:4"))
    assert prune(path, tmp_path / "out") == 0
    assert "was made with another recipe or other data: starting over" in caplog.text
    assert Artifact.open(tmp_path / "out").lineage.steps[0].options["sparsity"] == "1:4"
    (tmp_path / "out" / "config.json").write_text("{}")
    assert prune(path, tmp_path / "out") == 0
    assert "was changed" in caplog.text
    Artifact.open(tmp_path / "out")


def test_an_artifact_trained_on_a_changed_text_is_made_anew(
    recipe: Write, prune: Prune, text: Path, tmp_path: Path
) -> None:
    lessons = tmp_path / "lessons.txt"
    lessons.write_text(text.read_text())
    distill = f'kind = "distill"\nsource = "{lessons}"\ntokens = 64\nlength = 16\nbatch = 2\nheld_out = 2\n'
    path = recipe(f"{SPARSEGPT}[[stages]]\n{distill}")
    assert prune(path, tmp_path / "out") == 0
    lineage = tmp_path / "out" / "lineage.json"
    first = sha256(lineage)
    assert prune(path, tmp_path / "out") == 0
    assert sha256(lineage) == first
    lessons.write_text(text.read_text().replace("times", "by"))
    assert prune(path, tmp_path / "out") == 0
    assert sha256(lineage) != first


def test_blocks_are_removed_and_the_rest_pruned(
    recipe: Write, prune: Prune, tmp_path: Path, model: Path, base_cache: Path
) -> None:
    assert prune(recipe(DEPTH + 'technique = { name = "wanda", sparsity = 0.5 }\n'), tmp_path / "out") == 0
    artifact = Artifact.open(tmp_path / "out")
    depth, wanda = artifact.lineage.steps
    assert len(depth.removed_blocks) == 2
    assert artifact.config["num_hidden_layers"] == 4
    assert {name.split(".")[2] for name in artifact.names() if ".layers." in name} == set("0123")
    assert len(wanda.sparsity) == 4 * 7
    assert wanda.parameters == depth.parameters
    kept = [index for index in range(6) if index not in depth.removed_blocks]
    dense = base_artifact(str(model), base_cache)
    norm = "input_layernorm.weight"
    for new, old in enumerate(kept):
        assert torch.equal(artifact.tensor(f"model.layers.{new}.{norm}"), dense.tensor(f"model.layers.{old}.{norm}"))


def journal(folder: Path) -> int:
    """The number of blocks that a run has recorded as finished."""
    file = folder / "out.work" / "stage-0" / "journal.json"
    return len(json.loads(file.read_bytes())) if file.exists() else 0


def kill_after(blocks: int, arguments: list[str], folder: Path) -> None:
    """Start the command and kill it once it has finished `blocks` blocks."""
    kill_when(lambda: journal(folder) >= blocks, arguments, folder / "errors.txt")


def test_killed_twice_it_ends_with_the_identical_artifact(
    recipe: Write, prune: Prune, tmp_path: Path, base_cache: Path
) -> None:
    path = recipe()
    path.write_text(path.read_text().replace("sequences = 12", "sequences = 60").replace("batch = 5", "batch = 2"))
    assert prune(path, tmp_path / "whole") == 0
    arguments = ["prune", str(path), "--output", str(tmp_path / "out"), "--base-cache", str(base_cache)]
    kill_after(1, arguments, tmp_path)
    done = journal(tmp_path)
    files = sorted((tmp_path / "out.work" / "stage-0").glob("block-*.safetensors"))
    times = {file: file.stat().st_mtime_ns for file in files[:done]}
    kill_after(done + 2, arguments, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in times} == times, "a finished block was done again"
    assert journal(tmp_path) < 6, "it was killed too late"
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    assert sha256(tmp_path / "out" / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")


def test_interrupted_before_every_block_it_repeats_none(
    recipe: Write,
    prune: Prune,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original, tried, pruned = PruneBlock.__call__, set[int](), list[int]()

    def visit(self: PruneBlock, view: BlockView) -> Note:
        if view.index not in tried:
            tried.add(view.index)
            raise KeyboardInterrupt
        pruned.append(view.index)
        return original(self, view)

    monkeypatch.setattr(PruneBlock, "__call__", visit)
    for _ in range(6):
        assert prune(recipe(), tmp_path / "out") == 130
        assert "run the same command again to resume" in capsys.readouterr().err
    assert prune(recipe(), tmp_path / "out") == 0
    assert pruned == [*range(6)]


def test_without_its_state_files_a_stage_starts_anew(
    recipe: Write, prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, visited = PruneBlock.__call__, []

    def visit(self: PruneBlock, view: BlockView) -> Note:
        visited.append(view.index)
        if len(visited) == 3:
            raise KeyboardInterrupt
        return original(self, view)

    monkeypatch.setattr(PruneBlock, "__call__", visit)
    assert prune(recipe(), tmp_path / "out") == 130
    (tmp_path / "out.work" / "stage-0" / "states-0").unlink()
    assert prune(recipe(), tmp_path / "out") == 0
    assert visited == [0, 1, 2, *range(6)]


def test_only_one_block_is_in_memory(
    recipe: Write, prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, peaks = PruneBlock.__call__, []

    def visit(self: PruneBlock, view: BlockView) -> Note:
        model = view._sweep.blocks.model
        peaks.append({name.split(".")[2] for name, p in model.named_parameters() if not p.is_meta})
        return original(self, view)

    monkeypatch.setattr(PruneBlock, "__call__", visit)
    assert prune(recipe(), tmp_path / "out") == 0
    assert peaks == [{str(index)} for index in range(6)]


@pytest.mark.parametrize("what", ["recipe", "version"])
def test_another_recipe_or_version_starts_anew(
    recipe: Write,
    prune: Prune,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    caplog.set_level("INFO")
    path = recipe()
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "write_atomically", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prune(path, tmp_path / "out") == 130
    if what == "recipe":
        path.write_text(path.read_text().replace("2:4", "1:4"))
    else:
        for module in (output, pipeline):
            monkeypatch.setattr(module, "versions", lambda: {"torch": "3.0"})
    assert prune(path, tmp_path / "out") == 0
    assert "was begun with another recipe, other data or another version: starting anew" in caplog.text


@pytest.fixture(params=["256k", "420k", "700k", "1300k"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A full disk: a real one if mounting is permitted, else a failing allocation."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    if not mounted:
        patch = request.getfixturevalue("monkeypatch")
        patch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    yield disk
    if mounted:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_nothing_half_written(
    recipe: Write, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output", str(small_disk / "out"), "--base-cache", str(small_disk / "base")]
    assert main(["prune", str(recipe()), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("secateur: the disk is full: free some space and run the same command")
    assert "Traceback" not in error
    assert not (small_disk / "out").exists()
    assert not list(small_disk.rglob("*.partial"))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("sequences = 12", "sequences = 1200", "but calibration needs 1200 x 32 = 38400 tokens"),
        ("text.txt", "none.txt", "none.txt does not exist"),
        ("2:4", "4:2", 'sparsity "4:2" is neither a fraction such as 0.5 nor "N:M"'),
        ("tiny", "none", "none does not exist"),
        ('base = "', 'base = "package:nowhere/', "run `pip install --no-deps nowhere` first"),
    ],
)
def test_a_mistake_is_one_sentence(
    recipe: Write, prune: Prune, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, sentence: str
) -> None:
    path = recipe()
    path.write_text(path.read_text().replace(old, new))
    assert prune(path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 + error.count("importing")
    assert sentence in error
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("tokens", [2, 3])
def test_a_few_tokens_suffice(recipe: Write, prune: Prune, tmp_path: Path, tokens: int) -> None:
    path = recipe('[[stages]]\nkind = "layerwise"\ntechnique = { name = "wanda", sparsity = 0.5 }\n')
    path.write_text(path.read_text().replace("sequences = 12\ntokens = 32", f"sequences = 1\ntokens = {tokens}"))
    assert prune(path, tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("tokens = 32\nbatch", "tokens = 129\nbatch", "calibration.tokens = 129"),
        ("tokens = 128\nwindow = 32", "tokens = 129\nwindow = 129", "evaluation.window = 129"),
        ("", "", "stages[0].length = 256"),
    ],
)
def test_sequences_beyond_the_models_positions(
    recipe: Write,
    prune: Prune,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    old: str,
    new: str,
    name: str,
) -> None:
    path = recipe('[[stages]]\nkind = "distill"\ntokens = 512\nlength = 256\n' if not old else SPARSEGPT)
    path.write_text(path.read_text().replace(old, new).replace(str(model), str(tiny.save(tmp_path / "tiny", "gpt2"))))
    assert prune(path, tmp_path / "out") == 2
    assert f"{name} is beyond the 128 positions of the model: take 128 or less" in capsys.readouterr().err
    assert not (tmp_path / "out.work").exists()
    if not old:
        return
    path.write_text(
        path.read_text().replace(str(tmp_path / "tiny"), str(model)).replace("tokens = 128", "tokens = 256")
    )
    assert prune(path, tmp_path / "out") == 0
    assert f"{name} is beyond the 128 positions of the model, which was never trained at that length" in caplog.text


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_little_memory_is_one_sentence(
    recipe: Write,
    prune: Prune,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: (_ for _ in ()).throw(error))
    assert prune(recipe(), tmp_path / "out") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("secateur: out of memory: choose a smaller")
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a mistake of ours")))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        prune(recipe(), tmp_path / "out")


def test_too_many_blocks_to_remove(
    recipe: Write, prune: Prune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        prune(recipe(DEPTH.replace("2", "6") + 'technique = { name = "wanda", sparsity = 0.5 }\n'), tmp_path / "out")
        == 2
    )
    assert "remove = 6 would leave none of the model's 6 blocks" in capsys.readouterr().err


def test_evaluate_prints_the_perplexity_in_the_lineage(
    recipe: Write, prune: Prune, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(recipe(), tmp_path / "out") == 0
    capsys.readouterr()
    arguments = ["--source", str(text), "--buckets", "7", "8", "9", "--tokens", "128", "--window", "32"]
    nowhere = ["--base-cache", str(tmp_path / "nowhere")]
    assert main(["evaluate", str(tmp_path / "out"), *arguments, *nowhere]) == 0
    evaluation = Artifact.open(tmp_path / "out").lineage.evaluation
    assert evaluation is not None
    head, own = capsys.readouterr().out.splitlines()
    assert head.startswith(
        f"perplexity per token on 4 windows of 32 tokens of {text}, buckets 7, 8, 9, its texts shuffled"
    )
    assert "; warning: 128 tokens are too few to compare models by" in head
    assert own.endswith(f"  {evaluation.perplexity['pruned']:.4f}")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_resumed_run_takes_over_its_number_of_threads(
    recipe: Write, tmp_path: Path, base_cache: Path, threads: Callable[[int], None]
) -> None:
    inputs, work = prepare(read(recipe()), base_cache), tmp_path / "out.work"
    (work / "stage-0").mkdir(parents=True)
    threads(2)
    pipeline.begin(work, inputs)  # another run's: cleared
    assert inputs.identity["threads"] == "2"
    (work / "stage-0").mkdir()
    threads(1)
    pipeline.begin(work, inputs)
    assert torch.get_num_threads() == 2
    assert (work / "stage-0").exists()


def test_an_artifact_made_with_other_threads_is_kept(
    recipe: Write, prune: Prune, tmp_path: Path, base_cache: Path, threads: Callable[[int], None]
) -> None:
    path = recipe()
    threads(1)
    assert prune(path, tmp_path / "out") == 0
    threads(2)
    assert reusable(tmp_path / "out", prepare(read(path), base_cache)) is not None


def test_the_base_is_imported_once(
    recipe: Write, prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prune(recipe(), tmp_path / "out") == 0
    monkeypatch.setattr(base, "CheckpointWriter", None)
    assert prune(recipe(DEPTH.split('[[stages]]\nkind = "layerwise')[0]), tmp_path / "out") == 0


def test_foreign_files_are_never_replaced(
    recipe: Write, prune: Prune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "out" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    assert prune(recipe(), tmp_path / "out") == 2
    assert "exists and is not an artifact" in capsys.readouterr().err
    precious.rename(tmp_path / "thesis.txt")
    work = tmp_path / "out.work"
    work.mkdir()
    (work / "thesis.txt").write_text("years of work")
    assert prune(recipe(), tmp_path / "out") == 2
    assert "was not written by secateur" in capsys.readouterr().err
    assert (work / "thesis.txt").read_text() == "years of work"


def test_two_runs_never_share_a_work_directory(
    recipe: Write, prune: Prune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path / "out.work" / "lock", "testing"):
        assert prune(recipe(), tmp_path / "out") == 2
    assert "another secateur is making" in capsys.readouterr().err
    assert prune(recipe(), tmp_path / "out") == 0


def test_a_kill_while_the_record_is_written_repeats_only_the_evaluation(
    recipe: Write, prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(candidate: Artifact, *_: object) -> Artifact:
        (candidate.path / "lineage.json.partial").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", killed)
        assert prune(recipe(), tmp_path / "out") == 130
    assert prune(recipe(), tmp_path / "out") == 0
    Artifact.open(tmp_path / "out")
