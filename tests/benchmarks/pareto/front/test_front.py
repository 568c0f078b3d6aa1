"""The fronts and their page, on known figures."""

import math
from pathlib import Path

import msgspec
import pytest

from pruning.errors import RecipeError
from tests.benchmarks.pareto import plan as plans
from tests.benchmarks.pareto.front import page, plot
from tests.benchmarks.pareto.front.dominance import by_bytes, by_speed, front, points
from tests.benchmarks.pareto.results import Measured, Quality, Results, Rounds, read, write

TEXTS = {"wiki": {"bytes": 4000, "b": 1000}, "faq": {"bytes": 2000, "b": 500}}


def row(name: str, kind: str, bits: float, size: int, ratio: float, speed: float = 0) -> Measured:
    """A candidate whose perplexity is `ratio` of the base's on both texts."""
    nats = {text: 3.0 * counts["b"] + math.log(ratio) * counts["b"] for text, counts in TEXTS.items()}
    runs: Rounds = {"batch 1": (speed, speed * 2, speed)} if speed else {}
    quality = Quality(nats, 0.75, 125, "native")
    return Measured("b", name, kind, bits, "secateur", "", size, 10, 0.0, 0, quality, runs, "seconds" if runs else "")


RESULTS = Results(
    TEXTS,
    "a processor",
    (
        row("16 bits", "dense", 16, 200, 1.0, 10),
        row("int8", "dense", 8, 100, 1.01, 20),
        row("int4", "dense", 4, 50, 1.2, 30),
        row("worse", "dense", 4, 60, 1.3, 25),
        row("pruned", "pruned", 4, 45, 1.1, 40),
        row("equal", "pruned", 4, 45, 1.1, 40),
    ),
)


def test_ratios_are_for_each_token_of_the_base() -> None:
    found = {point.row.name: point for point in points(RESULTS, "b")}
    assert found["int4"].ratio == pytest.approx(1.2)
    assert found["int4"].ratios == pytest.approx({"wiki": 1.2, "faq": 1.2})
    assert found["16 bits"].bits_a_byte["wiki"] == pytest.approx(3000 / math.log(2) / 4000)


def test_a_front_has_what_nothing_beats_and_equals_share_it() -> None:
    found = points(RESULTS, "b")
    assert {point.row.name for point in front(found, by_bytes)} == {"16 bits", "int8", "pruned", "equal"}
    assert {point.row.name for point in front(found, by_speed("batch 1"))} == {"16 bits", "int8", "pruned", "equal"}
    assert not front(found, by_speed("batch 8")), "what was not measured is on no front"


def test_without_its_base_nothing_compares() -> None:
    assert points(msgspec.structs.replace(RESULTS, rows=RESULTS.rows[1:]), "b") == []


def test_the_page_marks_the_front(tmp_path: Path) -> None:
    plan = plans.read(plan_file(tmp_path))
    page.write(plan, RESULTS, tmp_path / "front.md", tmp_path / "figures")
    text = (tmp_path / "front.md").read_text()
    assert "| **pruned** | B 1 | 0.0 | 1.100 x |" in text
    assert "| worse |  |" in text
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {"pareto-b-bytes.svg", "pareto-b-speed.svg"}


def test_names_in_a_plot_are_escaped() -> None:
    found = points(msgspec.structs.replace(RESULTS, rows=(*RESULTS.rows, row("a<b", "peer", 3, 20, 1.4))), "b")
    assert "a&lt;b" in plot.drawings(found, "batch 1")["bytes"]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "r.json", RESULTS)
    assert read(tmp_path / "r.json").rows == tuple(sorted(RESULTS.rows, key=lambda row: row.key))
    assert read(tmp_path / "none.json").rows == ()


def test_two_candidates_of_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="two candidates are b: 16 bits"):
        plans.read(
            plan_file(tmp_path, again='[[candidates]]\nbase = "b"\nname = "16 bits"\nkind = "dense"\nbits = 16\n')
        )
    with pytest.raises(RecipeError, match="names the base c; allowed: b"):
        plans.read(
            plan_file(tmp_path, again='[[candidates]]\nbase = "c"\nname = "16 bits"\nkind = "dense"\nbits = 16\n')
        )


def test_the_plan_of_the_repository_is_valid() -> None:
    plan = plans.read(Path("docs/results/figures/front/pareto.toml"))
    for candidate in plan.candidates:
        if candidate.stages:
            plan.recipe(candidate, "base")


def plan_file(folder: Path, again: str = "") -> Path:
    """A small plan."""
    file = folder / "plan.toml"
    file.write_text(
        'task = "task.toml"\n[calibration]\nsource = "a"\n[evaluation]\nsource = "b"\n'
        + "".join(
            f'[[texts]]\nname = "{name}"\nsource = "{name}"\nbuckets = [0]\nwindows = 1\ncharacters = 9\n'
            for name in TEXTS
        )
        + '[[bases]]\nname = "b"\nsource = "model"\nnote = "A model"\n'
        + '[[candidates]]\nbase = "b"\nname = "16 bits"\nkind = "dense"\nbits = 16\n'
        + again
    )
    return file
