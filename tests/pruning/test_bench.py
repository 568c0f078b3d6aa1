"""The rows of `make bench-pruning` are told apart by what their recipes say, and not by what they leave unsaid."""

import msgspec

from pruning.bench import Plan, Row, apart_from_defaults, jobs
from pruning.errors import RecipeError
from pruning.evaluation.measured import read
from pruning.recipe import Calibration, Evaluation, read_as
from pruning.techniques.sparsegpt import SparseGPT
from tests.conftest import ROOT

FIGURES = ROOT / "docs" / "figures"


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
    assert apart_from_defaults(Small(2, ("a",))) == apart_from_defaults(Grown(2, ("a",)))
    assert apart_from_defaults(Grown(2)) == {"type": "small", "size": 2}
    assert apart_from_defaults(Grown(2, extra=4)) == {"type": "small", "size": 2, "extra": 4}
    assert apart_from_defaults((Grown(2, more={"b": 1}),)) == [{"type": "small", "size": 2, "more": {"b": 1}}]


def test_what_is_said_at_its_default_counts_as_unsaid() -> None:
    """A seed, a stage's number and an own calibration make another row; a default that is written out does not."""

    def digest(line: str, seed: int = 0) -> str:
        row = msgspec.toml.decode(f'group = "g"\nname = "n"\nseeds = [{seed}]\n{line}', type=Row)
        plan = Plan("base", Calibration("text.txt"), Evaluation("text.txt"), (row,))
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
    plan: Plan = read_as(Plan, FIGURES / "pruning.toml", RecipeError)
    planned = {job.digest: (job.row.group, job.row.name, job.seed) for job in jobs(plan)}
    measured = read(FIGURES / "pruning.json")
    assert measured
    assert {digest: (row.group, row.name, row.seed) for digest, row in measured.items()}.items() <= planned.items()
