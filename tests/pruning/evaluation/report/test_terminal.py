"""The table for the terminal."""

from pruning.evaluation.comparison.bootstrap import Interval
from pruning.evaluation.comparison.results import ModelRow, Results
from pruning.evaluation.report.terminal import table
from pruning.evaluation.scoring import measures


def results(names: list[str]) -> Results:
    """Three models with the same figures."""
    figures = {name: Interval(number / 10, 0, 1) for number, name in enumerate(names)}
    rows = tuple(ModelRow(name, 1000, figures) for name in ("base, 16 bits", "base, int8", "pruned"))
    return Results(
        task="a",
        kind="knowledge",
        task_digest="",
        items=3,
        seed=0,
        artifact="",
        weights="",
        base="",
        created="",
        runner={"runner": "native", "reason": "of a test"},
        rows=rows,
        against_quantised=Interval(1, 0.9, 1.1),
        gates=(),
        measure=measures.NLL,
        changes={},
        regressions=(),
        answered="said",
        layers={},
        gains={measures.ACCURACY: Interval(0.25, 0.1, 0.4)},
    )


def test_many_measures_have_a_line_each() -> None:
    names = [measures.NLL, *measures.ALONE, *measures.ALONE.values(), measures.HIT_1, measures.HIT_3, measures.HIT_5]
    names += [measures.RECIPROCAL_RANK, measures.SUPPORTED]
    lines = table(results(list(dict.fromkeys(names)))).splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("hit@3")] == [["hit@3", "0.700"]]
    assert max(map(len, lines[:14])) < 120
    assert "pruned with knowledge against the base without it, accuracy: +0.250 [+0.100, +0.400]" in lines


def test_few_measures_have_a_column_each() -> None:
    assert [line for line in table(results([measures.NLL])).splitlines() if line.startswith("pruned  ")]
