"""The tasks of a recipe: a failed artifact is kept, marked, reported, and not promoted."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pruning.commands.__main__ import main
from pruning.evaluation.comparison.compare import compare
from pruning.recipe.recipe import read
from pruning.run import acceptance
from server.artifact.checkpoint.lineage import FILE, SIGNATURE, GateResult
from server.artifact.checkpoint.reader import Artifact
from server.artifact.signing import keys
from server.commands.__main__ import main as secateur
from tests.pruning.run.conftest import Prune

Write = Callable[[str], Path]
DEPTH = '[[stages]]\nkind = "depth"\nremove = 3\n'


@pytest.fixture
def judged(tmp_path: Path, prune: Prune, recipe: Write, text: Path) -> Callable[..., int]:
    """Carries out a recipe whose task allows `limit` times the base's NLL; `more` is appended to the recipe."""

    def run(limit: float, more: str = "") -> int:
        task, path = tmp_path / "task.toml", recipe(DEPTH)
        task.write_text(
            f'kind = "text"\nname = "paragraphs"\nsource = "{text}"\ntokens = 256\nwindow = 32\n'
            f"[gates]\nmax_nll_ratio = {limit}\n"
        )
        path.write_text(f'tasks = ["{task}"]\n{path.read_text()}{more}')
        return prune(path, tmp_path / "out")

    return run


def gates(folder: Path) -> tuple[GateResult, ...]:
    evaluation = Artifact.open(folder).lineage.evaluation
    assert evaluation is not None
    return evaluation.gates


@pytest.mark.slow
def test_a_failed_artifact_is_kept_and_marked_and_not_promoted(
    tmp_path: Path, judged: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(1.0) == 3
    printed = capsys.readouterr().out
    assert "Failed: 1 of 1 gates" in printed
    assert "became" in printed  # the worst items, before and after
    assert "is kept and marked as not passed (paragraphs)" in printed
    (gate,) = gates(tmp_path / "out")
    assert not gate.passed
    assert gate.figures["max_nll_ratio limit"] == 1.0 < gate.figures["max_nll_ratio"]
    report = json.loads((tmp_path / "out.evaluation" / "paragraphs.json").read_text())
    assert report["artifact"] == "out"
    assert report["regressions"]
    assert "<html" in (tmp_path / "out.evaluation" / "paragraphs.html").read_text()
    assert "paragraphs: failed" in (tmp_path / "out" / "README.md").read_text()
    files = Artifact.open(tmp_path / "out").lineage.files
    listed = json.loads((tmp_path / "out" / "bom.cdx.json").read_text())["components"]
    assert {one["name"]: one["hashes"][0]["content"] for one in listed} == {
        name: digest for name, digest in files.items() if name != "bom.cdx.json"
    }
    registry = ["registry", "--registry", str(tmp_path / "registry.sqlite3")]
    assert secateur([*registry, "add", "tiny", str(tmp_path / "out")]) == 0
    keys.create(tmp_path / "alice.pem", elliptic=False)
    assert secateur([*registry, "promote", "tiny@candidate", "--key", str(tmp_path / "alice.pem")]) == 2
    assert "failed its gate paragraphs" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out", "out.evaluation"]


def test_a_changed_gate_is_judged_on_the_same_artifact(
    tmp_path: Path, judged: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(1.0) == 3
    made = Artifact.open(tmp_path / "out").lineage
    signer = tmp_path / "alice.pem"
    keys.create(signer, elliptic=False)
    assert secateur(["sign", str(tmp_path / "out"), "--key", str(signer)]) == 0
    assert judged(1.0) == 3
    assert (tmp_path / "out" / SIGNATURE).exists()  # nothing changed, so it holds
    assert judged(50.0) == 0
    assert [gate.passed for gate in gates(tmp_path / "out")] == [True]
    assert Artifact.open(tmp_path / "out").lineage.created == made.created
    assert not (tmp_path / "out" / SIGNATURE).exists()
    assert "every gate holds" in capsys.readouterr().out


def test_an_artifact_replaced_meanwhile_is_not_marked(
    tmp_path: Path, judged: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another recipe with the same output has finished in between."""

    def replacing(artifact: Artifact, *given: Any) -> Any:
        found = compare(artifact, *given)
        lineage = msgspec.structs.replace(artifact.lineage, created="another")
        (artifact.path / FILE).write_bytes(msgspec.json.encode(lineage))
        return found

    monkeypatch.setattr(acceptance, "compare", replacing)
    assert judged(50.0) == 2
    assert "was replaced while its tasks were judged: run this command again" in capsys.readouterr().err
    assert gates(tmp_path / "out") == ()
    assert not list(tmp_path.glob(".out*"))


def test_without_hard_links_gates_are_recorded_too(
    tmp_path: Path, judged: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert judged(50.0) == 0
    assert [gate.passed for gate in gates(tmp_path / "out")] == [True]


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("nowhere.toml", "nowhere.toml: cannot be read"),
        ('kind = "text"\nname = "a"\nsource = "nowhere.txt"\n', "nowhere.txt does not exist"),
        ('kind = "text"\nname = "a"\nsource = "{text}"\nwindow = 4096\n', "are needed"),
    ],
)
def test_an_unusable_task_is_refused_before_any_work(
    tmp_path: Path,
    prune: Prune,
    recipe: Write,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    task: str,
    sentence: str,
) -> None:
    path, file = recipe(DEPTH), tmp_path / "task.toml"
    if "\n" in task:
        file.write_text(task.replace("{text}", str(text)))
    path.write_text(f'tasks = ["{file if file.exists() else task}"]\n{path.read_text()}')
    assert prune(path, tmp_path / "out") == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_gates_of_the_recipe_are_judged_on_its_tasks(
    tmp_path: Path, base_cache: Path, judged: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(50.0) == 0
    scores = {file: file.stat().st_mtime_ns for file in (base_cache / "evaluations").iterdir()}
    assert judged(50.0, "\n[gates]\nmax_nll_ratio = 1.0\n") == 3
    assert "max_nll_ratio does not hold" in capsys.readouterr().out
    assert {gate.figures["max_nll_ratio limit"] for gate in gates(tmp_path / "out")} == {1.0}
    # another gate remakes neither the artifact nor its scores
    assert {file: file.stat().st_mtime_ns for file in (base_cache / "evaluations").iterdir()} == scores
    assert judged(50.0, "\n[gates]\nmax_kl = 1.0\n") == 2
    assert "gates.max_kl of the recipe cannot be judged" in capsys.readouterr().err


def test_gates_without_a_task_are_refused(recipe: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe('[[stages]]\nkind = "depth"\nremove = 3\n[gates]\nmax_nll_ratio = 1.1\n')
    assert main(["prune", str(path), "--output", str(path.with_name("out"))]) == 2
    assert "gates are judged on tasks, and there are none: name a task file in `tasks`" in capsys.readouterr().err


def test_tasks_do_not_change_what_a_recipe_makes(recipe: Write) -> None:
    path = recipe(DEPTH)
    plain = read(path)
    path.write_text(f'tasks = ["a.toml"]\n{path.read_text()}\n[gates]\nmax_nll_ratio = 1.1\n')
    assert read(path).digest == plain.digest
    assert "tasks" not in plain.values()
    assert read(path).values()["tasks"] == ("a.toml",)
