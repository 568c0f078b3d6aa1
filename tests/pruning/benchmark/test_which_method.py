"""The page "which method for which goal" shows the rows' figures; the one in docs/ is generated from docs/' rows."""

from pathlib import Path

import msgspec
import pytest

from pruning.benchmark.results import RowResult, read, write
from pruning.benchmark.which_method import main, page
from tests.conftest import ROOT

DOCS = ROOT / "docs" / "results"


def row(
    name: str, group: str, perplexity: float, size: int = 100, seconds: float = 10, seed: int = 0, threads: int = 1
) -> RowResult:
    perplexities = {"dense": 10.0, "int8": 10.1, "pruned": perplexity}
    sizes = {"dense": 269 * 10**6, "int8": 170 * 10**6, "pruned": size * 10**6}
    digest = f"{group} {name} {seed}"
    return RowResult(group, name, seed, digest, perplexities, sizes, 1000, seconds, threads, peak_mb=900.0)


ROWS = [
    row("sparsegpt", "2:4", 70, 180, 50),
    row("admm", "2:4", 40, 180, 200),
    row("admm", "2:4", 44, 180, 220, seed=1),
    row("swaps", "2:4", 43, 180, 10, threads=2),
    row("admm", "32:64", 25, 180),
    row("distilled", "32:64, recovered", 20, 180),
    row("second order", "structured 20 %", 30, 210),
    row("gptq", "int4", 17, 113),
    row("admm", "50 %", 24, 269),
]


def test_the_page_in_docs_is_generated_from_the_rows_in_docs() -> None:
    assert (DOCS / "which-method.md").read_text() == page(list(read(DOCS / "figures" / "pruning.json").values()))


def test_each_goal_names_the_best_and_a_quicker_method_within_5_percent() -> None:
    lines = page(ROWS).splitlines()
    for cells in (
        "the pattern of CUDA's sparse kernels | 2:4 | admm | 42.00, 4.20 x | 180.0 | swaps, 0.10 of the time",
        "on a processor, the bytes and speed of 2:4 with less loss | 32:64 | admm | 25.00, 2.50 x | 180.0 | -",
        "zeros anywhere, where only the loss counts | 50 % | admm | 24.00, 2.40 x | 269.0 | -",
    ):
        assert f"| {cells} |" in lines
    groups = [line.split(" | ")[1] for line in lines if line.startswith("| on a processor")]
    assert groups == ["32:64", "32:64, recovered"]
    assert [line.split(" | ")[1] for line in lines if line.startswith("| an ordinary")] == ["structured 20 %"]
    assert sum(line.startswith("| the smallest file") for line in lines) == 1


def test_a_group_is_ordered_by_perplexity_with_the_range_over_seeds() -> None:
    text = page(ROWS).split("## 2:4\n")[1].split("##")[0]
    assert [line for line in text.splitlines() if line][2:] == [
        "| admm | 42.00 (40.00 to 44.00) | 4.20 x | 180.0 | 210 | 2 |",
        "| swaps | 43.00 | 4.30 x | 180.0 | 20 | 1 |",
        "| sparsegpt | 70.00 | 7.00 x | 180.0 | 50 | 1 |",
    ]


def test_the_frontier_is_pareto_optimal() -> None:
    text = page([*ROWS, row("big", "int4", 16, 150)]).split("frontier of bytes and perplexity\n")[1]
    assert text.splitlines()[1:] == [
        "- 113.0 MB: int4, gptq (17.00)",
        "- 150.0 MB: int4, big (16.00)",
        "- 170.0 MB: unpruned, 8 bits in groups of 32 (10.10)",
        "- 269.0 MB: unpruned, 16 bits (10.00)",
    ]


def test_the_command_writes_the_page_or_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, target = tmp_path / "rows.json", tmp_path / "page.md"
    write(rows, {result.recipe: result for result in ROWS})
    assert main([str(rows), str(target)]) == 0
    assert target.read_text() == page(list(read(rows).values()))
    rows.write_text('[{"name": "x"}]')
    assert main([str(rows), str(target)]) == 2
    assert "holds no measured rows: Object missing required field `group` - at `$[0]`" in capsys.readouterr().err
    assert main([]) == 2
    assert "Nothing has been measured yet" in page([])


def test_other_texts_and_the_base_as_found_are_shown_where_they_were_measured() -> None:
    """The base as found beats what is larger and worse."""
    new = row("mixed", "2:4", 42, 180)
    new = msgspec.structs.replace(
        new,
        perplexity={"found": 10.0, **new.perplexity},
        bytes={"found": 97 * 10**6, **new.bytes},
        base="SmolLM2 (Q4_1)",
        texts={"letters": {"dense": 8.0, "pruned": 20.0}},
    )
    text = page([new, *ROWS])
    assert "within this page: SmolLM2 (Q4_1), one text and, where measured, letters." in text
    assert "as found: 10.00, 97.0 MB." in text
    assert "| method | perplexity | of dense | letters, of dense | MB | seconds | seeds |" in text
    assert "| mixed | 42.00 | 4.20 x | 2.50 x | 180.0 | 10 | 1 |" in text
    assert "| sparsegpt | 70.00 | 7.00 x | - | 180.0 | 50 | 1 |" in text
    assert text.endswith("- 97.0 MB: unpruned, as found (10.00)\n")
