"""`make bench-pruning`: rows are identified by their recipes without defaults, and one failed row costs no other."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pruning.benchmark import measure
from pruning.benchmark.measure import main, stage_digests
from pruning.benchmark.plan import BenchmarkJob, BenchmarkPlan, BenchmarkRow, jobs, without_defaults
from pruning.benchmark.results import RowResult, read
from pruning.errors import RecipeError
from pruning.recipe.recipe import Calibration, Evaluation, read_as
from pruning.recipe.texts import EvaluatedText
from pruning.stages.inputs import prepare
from pruning.techniques.sparsegpt import SparseGPT
from tests.conftest import ROOT
from tests.pruning.conftest import RECIPE
from tests.support.prune_process import FORKSERVER

PLAN = RECIPE.replace("{stages}", "")
ROW = '[[rows]]\ngroup = "small"\nname = "{name}"\nstages = [{{ kind = "depth", remove = {remove} }}]\n'
FIGURES = ROOT / "docs" / "results" / "figures"


class Small(msgspec.Struct, frozen=True, tag="small"):
    """A struct before it gained a field."""

    size: int
    names: tuple[str, ...] = ()


class Grown(msgspec.Struct, frozen=True, tag="small"):
    """The same struct after."""

    size: int
    names: tuple[str, ...] = ()
    extra: int = 3
    more: dict[str, int] = {}


def test_a_new_field_with_a_default_changes_no_digest() -> None:
    """Neither a plain default nor a default factory; another value does."""
    assert without_defaults(Small(2, ("a",))) == without_defaults(Grown(2, ("a",)))
    assert without_defaults(Grown(2)) == {"type": "small", "size": 2}
    assert without_defaults(Grown(2, extra=4)) == {"type": "small", "size": 2, "extra": 4}
    assert without_defaults((Grown(2, more={"b": 1}),)) == [{"type": "small", "size": 2, "more": {"b": 1}}]


def test_further_texts_change_no_digest_and_are_measured() -> None:
    row = msgspec.toml.decode('group = "g"\nname = "n"\nstages = [{ kind = "depth", remove = 1 }]', type=BenchmarkRow)
    plan = BenchmarkPlan("base", Calibration("text.txt"), Evaluation("text.txt", buckets=(8,)), (row,))
    more = msgspec.structs.replace(plan, others=(EvaluatedText("letters", "letters.txt", (9,)),))
    (one,), (both,) = jobs(plan), jobs(more)
    assert one.digest == both.digest
    assert one.recipe.evaluation == plan.evaluation
    named = (EvaluatedText("first", "text.txt", (8,)), *more.others)
    assert both.recipe.evaluation.every == named


def test_a_written_default_changes_no_digest() -> None:
    """Another option, seed or calibration makes another row; writing out a default does not."""

    def digest(line: str, seed: int = 0) -> str:
        row = msgspec.toml.decode(f'group = "g"\nname = "n"\nseeds = [{seed}]\n{line}', type=BenchmarkRow)
        plan = BenchmarkPlan("base", Calibration("text.txt"), Evaluation("text.txt"), (row,))
        (job,) = jobs(plan)
        return job.digest

    stage = '{ kind = "layerwise", technique = { name = "sparsegpt", sparsity = "2:4" SAID } }'
    plain = digest(f"stages = [{stage.replace('SAID', '')}]")
    technique = SparseGPT("2:4")
    said = digest(f"stages = [{stage.replace('SAID', f', damping = {technique.damping}')}]")
    others = [
        digest(f"stages = [{stage.replace('SAID', ', damping = 0.3')}]"),
        digest(f"stages = [{stage.replace('SAID', '')}]", seed=1),
        digest(f"stages = [{stage.replace('SAID', '')}]\ncalibration = {{ sequences = 32 }}"),
    ]
    assert said == plain
    assert len({plain, *others}) == 4


def test_the_published_results_are_those_of_the_plan() -> None:
    """So `make bench-pruning` repeats no published row, and every published row is in the plan."""
    plan: BenchmarkPlan = read_as(BenchmarkPlan, FIGURES / "pruning.toml", RecipeError)
    planned = {job.digest: (job.row.group, job.row.name, job.seed) for job in jobs(plan)}
    measured = read(FIGURES / "pruning.json")
    assert measured
    assert {digest: (row.group, row.name, row.seed) for digest, row in measured.items()}.items() <= planned.items()


@pytest.mark.slow
def test_a_failed_row_is_named_and_costs_no_other(
    tmp_path: Path,
    model: Path,
    text: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the recipe is refused in its process, or the process fails for a reason of the system."""
    plan, results = tmp_path / "plan.toml", tmp_path / "results.json"
    rows = [ROW.format(name=name, remove=remove) for name, remove in (("all", 6), ("two", 2), ("one", 1))]
    plan.write_text(PLAN.format(model=model, text=text) + "".join(rows))
    run_jobs = measure.run_jobs

    def full(waiting: Sequence[BenchmarkJob], *given: Any) -> Iterator[tuple[BenchmarkJob, Future[RowResult]]]:
        failed = Future[RowResult]()
        failed.set_exception(OSError(28, "No space left on device"))
        yield next(job for job in waiting if job.row.name == "two"), failed
        yield from run_jobs([job for job in waiting if job.row.name != "two"], *given)

    monkeypatch.setattr(measure, "run_jobs", full)
    monkeypatch.setattr(measure, "get_context", lambda _: FORKSERVER)  # which has imported torch
    folders = ["--work", str(tmp_path / "work"), "--base-cache", str(tmp_path / "base"), "--jobs", "2"]
    assert main([str(plan), "--results", str(results), *folders]) == 2
    assert [row.name for row in read(results).values()] == ["one"]
    assert "small, all, seed 0: remove = 6 would leave none of the model's 6 blocks" in caplog.text
    assert "small, two, seed 0: OSError(28, 'No space left on device')" in caplog.text
    assert "2 rows failed, each named above" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        ("sequence = 32", "the row one of small: Object contains unknown field `sequence` - at `$.calibration`"),
        ("sequences = 0", "the row one of small: Expected `int` >= 1 - at `$.calibration.sequences`"),
        ("seed = 1", "the seeds of a row's calibration are its `seeds`"),
    ],
)
def test_a_rows_own_calibration_is_checked(
    tmp_path: Path, model: Path, text: Path, capsys: pytest.CaptureFixture[str], calibration: str, reason: str
) -> None:
    plan = tmp_path / "plan.toml"
    row = f"{ROW.format(name='one', remove=1)}calibration = {{ {calibration} }}\n"
    plan.write_text(PLAN.format(model=model, text=text) + row)
    assert main([str(plan), "--results", str(tmp_path / "results.json")]) == 2
    assert reason in capsys.readouterr().err


def test_the_digest_of_a_stage_depends_on_base_and_threads(tmp_path: Path, model: Path, text: Path) -> None:
    """So a row reuses no stage of another model with the same name."""
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(model=model, text=text) + ROW.format(name="one", remove=1))
    (job,) = jobs(read_as(BenchmarkPlan, plan, RecipeError))
    inputs = prepare(job.recipe, tmp_path / "base")
    first = stage_digests(inputs, 1)
    base = msgspec.structs.replace(inputs.base.lineage.base, digest="another")
    inputs.base.lineage = msgspec.structs.replace(inputs.base.lineage, base=base)
    assert first == stage_digests(prepare(job.recipe, tmp_path / "base"), 1) != stage_digests(inputs, 1)
    assert stage_digests(inputs, 1) != stage_digests(inputs, 2), "recorded seconds depend on the threads"
