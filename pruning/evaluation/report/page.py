"""The results as one self-contained HTML file: no scripts, no external fonts or images."""

from pathlib import Path

import jinja2
from markupsafe import Markup

from pruning.evaluation.comparison.results import Results
from pruning.evaluation.report import plots
from pruning.evaluation.report.terminal import SHORT
from pruning.evaluation.report.verdict import computed, headline, sentences
from pruning.evaluation.scoring.measures import LABELS
from server.intervals import RESAMPLES, Interval

TEMPLATE = Path(__file__).with_name("page.html")


def page(results: Results) -> str:
    """The page as HTML, light or dark as the browser prefers, and light in print."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    drawn = plots.quality(results) + plots.changes(results) + plots.layers(results)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        r=results,
        headline=headline(results),
        sentences=sentences(results),
        computed=computed(results),
        columns=list(dict.fromkeys(name for row in results.rows for name in row.measures)),
        labels=LABELS,
        short=SHORT[results.measure],
        shorts=SHORT,
        figure=_figure,
        resamples=RESAMPLES,
        plots=Markup(drawn),
    )


def _figure(found: Interval, form: str = "%.3f", unit: str = "") -> Markup:
    """A figure with its interval in small print below."""
    bounds = f"{form % found.low} to {form % found.high}"
    return Markup("<span>{}{}<small>{}</small></span>").format(form % found.value, unit, bounds)
