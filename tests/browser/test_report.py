"""An evaluation's report in a real browser: light, dark, narrow, without scripts and on paper; axe finds nothing."""

import random
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from pruning.evaluation.comparison.gates import Judgement
from pruning.evaluation.comparison.results import ModelRow, Regression, Results
from pruning.evaluation.report.page import page
from server.intervals import Interval
from tests.browser.widget.test_accessibility import AXE, violations


def report() -> str:
    """A report with long words, HTML characters and every kind of chart."""
    generator = random.Random(0)
    nll, half = Interval(1.5, 1.4, 1.62), Interval(0.5, 0.4, 0.6)
    figures = {"nll": nll, "accuracy": half, "exact": half, "contained": half}
    rows = (
        ModelRow("base", "base, 16 bits", 269_060_000, figures),
        ModelRow("found", "base as found (Q4_1)", 96_600_000, figures),
        ModelRow(
            "quantised",
            "base, 8 bits in groups of 32",
            169_500_000,
            {**figures, "flips": half},
            nll,
            {"accuracy": half},
        ),
        ModelRow("pruned", "pruned", 229_300_000, {**figures, "flips": half}, nll, {"accuracy": half, "exact": half}),
    )
    weights = {f"model.layers.{n}.{name}.weight": generator.random() for n in range(30) for name in "qkv"}
    return page(
        Results(
            task="help-desk", kind="pairs", task_digest="d" * 64, items=68, seed=0, artifact="smollm2",
            weights="e" * 64, base="SmolLM2", created="2026-11-25T00:00:00+00:00",
            runner={"runner": "native", "reason": "the model has a plan", "instructions": "avx2"},
            rows=rows, against={"found": nll, "quantised": nll}, gates=(Judgement("max_nll_ratio", 1.1, nll, False),),
            measure="nll",
            changes={name: tuple(generator.gauss(0.1, 0.2) for _ in range(68)) for name in ("quantised", "pruned")},
            scores={}, ids=(),
            regressions=tuple(
                Regression(str(n), "<b>Why?</b> " + "x" * 200, "So & so.", 1.0, 2.0, "So.", "") for n in range(10)
            ),
            answered="said", layers={"sparsity": weights, "error": weights},
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report())
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_the_report_reads_well_everywhere(browser: Browser, file: str, scheme: Any, width: int) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    opened = context.new_page()
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(file)
    assert asked == [file]
    colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.locator("figure svg").count() == 4
    boxes = opened.evaluate(
        """[...document.querySelectorAll("svg text")].filter((text) => {
             const inner = text.getBoundingClientRect(), outer = text.closest("svg").getBoundingClientRect();
             return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
           }).map((text) => text.textContent)"""
    )
    assert boxes == []
    assert opened.locator("b").count() == 0
    if AXE.exists():
        assert violations(opened) == []
    context.close()


def test_the_report_without_scripts_on_paper(browser: Browser, file: str, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False, color_scheme="dark")
    opened = context.new_page()
    opened.goto(file)
    assert opened.get_by_role("heading", level=1).inner_text() == "Failed: 1 of 1 gates"
    paper = opened.pdf()
    assert paper.startswith(b"%PDF")
    assert 1 < paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") <= 6
    context.close()
