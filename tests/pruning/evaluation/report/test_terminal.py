"""The table for the terminal."""

from pruning.evaluation.comparison.results import ModelRow, Results
from pruning.evaluation.report.terminal import table
from pruning.evaluation.scoring import measures
from server.intervals import Interval


def results(names: list[str], changes: dict[str, Interval] | None = None) -> Results:
    """Four models with the same figures."""
    figures = {name: Interval(number / 10, 0, 1) for number, name in enumerate(names)}
    rows = (
        ModelRow("base", "base, 16 bits", 2000, figures),
        ModelRow("found", "base as found (Q4_1)", 700, figures),
        ModelRow("quantised", "base, 8 bits in groups of 32", 1100, figures),
        ModelRow("pruned", "pruned", 1000, figures, changes=changes or {}),
    )
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
        against={"found": Interval(1.2, 1.1, 1.3), "quantised": Interval(1, 0.9, 1.1)},
        gates=(),
        measure=measures.NLL,
        changes={},
        scores={},
        ids=(),
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


def test_the_base_as_found_is_weighed_too() -> None:
    found, quantised = table(results([measures.NLL])).splitlines()[-2:]
    assert found == (
        "The base as found (Q4_1) has 0.70 x the bytes and scores better: serve it as it is "
        "(negative log-likelihood, nats per token: pruned / found is 1.200 [1.100, 1.300])."
    )
    assert quantised.startswith("The quantised base (8 bits in groups of 32) has 1.10 x the bytes; 3 items are too few")


def test_generation_that_falls_while_choices_hold_is_warned_of() -> None:
    held, fell = Interval(0.01, -0.02, 0.04), Interval(-0.1, -0.18, -0.02)
    names = [measures.NLL, measures.ACCURACY, measures.CONTAINED]
    last = table(results(names, {measures.ACCURACY: held, measures.CONTAINED: fell})).splitlines()[-1]
    assert last == (
        "Warning: choices hold (accuracy +0.010 [-0.020, +0.040]), but generation falls: greedy answer contains the "
        "reference, pruned - base is -0.100 [-0.180, -0.020]. Gate on max_contained_drop."
    )
    slight = Interval(-0.02, -0.06, 0.02)
    assert "Warning" not in table(results(names, {measures.ACCURACY: held, measures.CONTAINED: slight}))
    lost = Interval(-0.2, -0.3, -0.1)
    assert "Warning" not in table(results(names, {measures.ACCURACY: lost, measures.CONTAINED: fell}))
