"""`make bench-pruning`: rows are identified by their recipes without defaults, and one failed row costs no other."""

from collections.abc import Iterator
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
from pruning.stages.inputs import prepare
from pruning.techniques.sparsegpt import SparseGPT
from tests.conftest import ROOT
from tests.pruning.conftest import RECIPE

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


def test_a_field_that_a_stage_gains_changes_no_digest() -> None:
    """Neither one with a default nor one whose default is made; another value of it does."""
    assert without_defaults(Small(2, ("a",))) == without_defaults(Grown(2, ("a",)))
    assert without_defaults(Grown(2)) == {"type": "small", "size": 2}
    assert without_defaults(Grown(2, extra=4)) == {"type": "small", "size": 2, "extra": 4}
    assert without_defaults((Grown(2, more={"b": 1}),)) == [{"type": "small", "size": 2, "more": {"b": 1}}]


def test_what_is_said_at_its_default_counts_as_unsaid() -> None:
    """A seed, a stage's number and an own calibration make another row; a default that is written out does not."""

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
    """So `make bench-pruning` measures no row again that is in the file, and the file has no row of another plan."""
    plan: BenchmarkPlan = read_as(BenchmarkPlan, FIGURES / "pruning.toml", RecipeError)
    planned = {job.digest: (job.row.group, job.row.name, job.seed) for job in jobs(plan)}
    measured = read(FIGURES / "pruning.json")
    assert measured
    assert {digest: (row.group, row.name, row.seed) for digest, row in measured.items()}.items() <= planned.items()


def test_a_row_that_fails_is_named_and_keeps_no_other_from_being_measured(
    tmp_path: Path, model: Path, text: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, results = tmp_path / "plan.toml", tmp_path / "results.json"
    rows = ROW.format(name="all", remove=6) + ROW.format(name="one", remove=1)
    plan.write_text(PLAN.format(model=model, text=text) + rows)
    folders = ["--work", str(tmp_path / "work"), "--base-cache", str(tmp_path / "base"), "--jobs", "1"]
    assert main([str(plan), "--results", str(results), *folders]) == 2
    assert [row.name for row in read(results).values()] == ["one"]
    assert "small, all, seed 0: remove = 6 would leave none of the model's 6 blocks" in caplog.text
    assert "1 rows failed, each named above" in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_loses_no_other_row(
    tmp_path: Path, model: Path, text: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, results = tmp_path / "plan.toml", tmp_path / "results.json"
    rows = ROW.format(name="two", remove=2) + ROW.format(name="one", remove=1)
    plan.write_text(PLAN.format(model=model, text=text) + rows)
    finished = measure.run_jobs

    def full(*given: Any) -> Iterator[tuple[BenchmarkJob, Future[RowResult]]]:
        for job, future in finished(*given):
            if job.row.name == "two":
                future = Future[RowResult]()
                future.set_exception(OSError(28, "No space left on device"))
            yield job, future

    monkeypatch.setattr(measure, "run_jobs", full)
    folders = ["--work", str(tmp_path / "work"), "--base-cache", str(tmp_path / "base"), "--jobs", "1"]
    assert main([str(plan), "--results", str(results), *folders]) == 2
    assert [row.name for row in read(results).values()] == ["one"]
    assert "small, two, seed 0: OSError(28, 'No space left on device')" in caplog.text


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


def test_a_finished_stage_is_told_apart_by_its_base_too(tmp_path: Path, model: Path, text: Path) -> None:
    """So a row does not begin with what another model of the same name left."""
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(model=model, text=text) + ROW.format(name="one", remove=1))
    (job,) = jobs(read_as(BenchmarkPlan, plan, RecipeError))
    inputs = prepare(job.recipe, tmp_path / "base")
    first = stage_digests(inputs, 1)
    base = msgspec.structs.replace(inputs.base.lineage.base, digest="another")
    inputs.base.lineage = msgspec.structs.replace(inputs.base.lineage, base=base)
    assert first == stage_digests(prepare(job.recipe, tmp_path / "base"), 1) != stage_digests(inputs, 1)
    assert stage_digests(inputs, 1) != stage_digests(inputs, 2), "its seconds are noted as those of so many threads"
