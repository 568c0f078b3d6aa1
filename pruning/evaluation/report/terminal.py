"""The results of an evaluation as a table for the terminal, with the verdict below it."""

from collections.abc import Iterator

from pruning.evaluation.comparison.results import ModelRow, Regression, Results
from pruning.evaluation.report.verdict import computed, headline, interval, sentences

SHOWN = 3
"""Regressions printed after a failed gate; the page lists more."""
SHORT = {
    "nll": "NLL/token",
    "accuracy": "accuracy",
    "exact": "exact",
    "contained": "contained",
    "perplexity": "perplexity",
    "kl": "KL/token",
    "agreement": "same reply",
    "flips": "flips",
    "error": "1 - accuracy",
    "accuracy_alone": "accuracy alone",
    "contained_alone": "contained alone",
    "contained_quoted": "contained, quoted",
    "supported": "supported words",
    "supported_quoted": "supported, quoted",
    "off_topic_refused": "off topic refused",
    "on_topic_refused": "on topic refused",
}
"""Column headings."""
MOST_COLUMNS = 8
"""With more measures the models are the columns."""


def table(results: Results) -> str:
    """The table, the changes from the base, the verdict and, if a gate failed, the worst regressions."""
    columns = list(dict.fromkeys(name for row in results.rows for name in row.measures))
    head = "".join(f"{SHORT.get(name, name):>24}" for name in columns)
    lines = [
        f"{results.task}: {results.items} items; 95 % bootstrap intervals over items in brackets, seed {results.seed}",
        f"base: {results.base}",
    ]
    if len(columns) > MOST_COLUMNS:
        lines += _transposed(results.rows, columns)
    else:
        width = max(34, *(len(row.name) + 1 for row in results.rows))
        lines += [f"{'':{width}}{'bytes':>14}{head}", *(_line(row, columns, width) for row in results.rows)]
    lines += _changes(results.rows[1:])
    lines += [
        f"pruned with knowledge against the base without it, {SHORT.get(name, name)}: {interval(gain, '+.3f')}"
        for name, gain in results.gains.items()
    ]
    lines += [computed(results), "", headline(results), *sentences(results)]
    if not results.passed:
        lines += ["", *(line for item in results.regressions[:SHOWN] for line in _side_by_side(item, results.answered))]
    return "\n".join(lines)


def _line(row: ModelRow, columns: list[str], width: int) -> str:
    """The table's line for one model, its name in `width` columns."""
    cells = [f"{interval(row.measures[name]) if name in row.measures else '-':>24}" for name in columns]
    return f"{row.name:{width}}{row.bytes:>14,}{''.join(cells)}"


def _transposed(rows: tuple[ModelRow, ...], measures: list[str]) -> Iterator[str]:
    """The table with a column for each model, and a line for the base as found, whose figures are the base's."""
    found = [row for row in rows if row.role == "found"]
    rows = tuple(row for row in rows if row.role != "found")
    yield f"{'':22}{''.join(f'{row.name:>30}' for row in rows)}"
    yield f"{'bytes':22}{''.join(f'{row.bytes:>30,}' for row in rows)}"
    for name in measures:
        cells = [interval(row.measures[name]) if name in row.measures else "-" for row in rows]
        yield f"{SHORT.get(name, name):22}{''.join(f'{cell:>30}' for cell in cells)}"
    for row in found:
        yield f"{row.name}: {row.bytes:,} bytes, with the figures of the base at 16 bits"


def _changes(rows: tuple[ModelRow, ...]) -> Iterator[str]:
    """One line per model with its changes from the base, paired by item."""
    for row in rows:
        parts = [f"NLL x {interval(row.nll_ratio)}"] if row.nll_ratio else []
        parts += [f"{SHORT[name]} {interval(change, '+.3f')}" for name, change in row.changes.items()]
        if parts:
            yield f"{row.name} against the base, item by item: {', '.join(parts)}"


def _side_by_side(item: Regression, answered: str) -> Iterator[str]:
    """The lines of one regression: figures, reference and both answers."""
    yield f"{item.id}: {item.base:.2f} became {item.pruned:.2f}: {_shortened(item.prompt)}"
    if item.wanted:
        yield f"    reference     {_shortened(item.wanted)}"
    if item.base_answer or item.pruned_answer:
        yield f"    base {answered:9}{_shortened(item.base_answer)}"
        yield f"    pruned {answered:7}{_shortened(item.pruned_answer)}"


def _shortened(text: str) -> str:
    """`text` on one line of at most 90 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 90 else line[:89] + "…"
