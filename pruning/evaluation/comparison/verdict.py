"""What an evaluation means, in sentences and as a table for the terminal."""

from collections.abc import Iterator

from pruning.evaluation.comparison.bootstrap import Interval
from pruning.evaluation.comparison.results import Regression, Results, Row
from pruning.evaluation.scoring.scores import LABELS, NLL

SHOWN = 3
"""Regressions that a failed gate names in the terminal; the page has more."""
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
}


GATES = {
    "max_nll_ratio": "the negative log-likelihood, as a multiple of the base's,",
    "max_accuracy_drop": "the accuracy lost",
    "max_kl": "the KL divergence from the base, in nats a token,",
}


def headline(results: Results) -> str:
    """The verdict in a few words."""
    if not results.gates:
        return "Not judged: the task sets no gates"
    failed = sum(not gate.passed for gate in results.gates)
    return f"Failed: {failed} of {len(results.gates)} gates" if failed else "Passed: every gate holds"


def sentences(results: Results) -> list[str]:
    """What a person who decides has to know beyond the headline."""
    lines = [
        f"{gate.gate} {'holds' if gate.passed else 'does not hold'}: {GATES[gate.gate]} is {gate.measured.value:.3g}, "
        f"at worst {gate.measured.high:.3g}; at most {gate.limit:g} is allowed."
        for gate in results.gates
    ]
    _, rival, pruned = results.rows
    found, even = results.against_quantised, 1 if results.measure == NLL else 0
    size = f"The quantised base ({rival.name.removeprefix('base, ')}) has {rival.bytes / pruned.bytes:.2f} x the bytes"
    words = f"{LABELS[results.measure]}: pruned {'/' if even else '-'} quantised is {interval(found)}"
    if found.low > even:
        lines.append(f"{size} and scores better: quantise instead, or recover more ({words}).")
    elif found.high < even:
        lines.append(f"{size} and scores worse ({words}).")
    else:
        lines.append(f"{size}, and {results.items} items do not tell which of the two scores better ({words}).")
    return lines


def computed(results: Results) -> str:
    """What computed the figures, why that, and in which form."""
    parts = dict(results.runner)
    runner, reason = parts.pop("runner"), parts.pop("reason")
    form = ", ".join(f"{name} {value}" for name, value in parts.items())
    return f"Computed by the server's {runner} runner, because {reason}: {form}."


def table(results: Results) -> str:
    """The table, with the verdict below it."""
    columns = list(dict.fromkeys(name for row in results.rows for name in row.measures))
    head = "".join(f"{SHORT.get(name, name):>24}" for name in columns)
    lines = [
        f"{results.task}: {results.items} items; in brackets 95 % intervals over items, {results.seed} the seed",
        f"{'':34}{'bytes':>14}{head}",
    ]
    lines += [_line(row, columns) for row in results.rows]
    lines += _paired(results.rows[1:])
    lines += [computed(results), "", headline(results), *sentences(results)]
    if not results.passed:
        lines += ["", *(line for item in results.regressions[:SHOWN] for line in side_by_side(item, results.answered))]
    return "\n".join(lines)


def interval(found: Interval, form: str = ".3f") -> str:
    """A figure with its interval."""
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def side_by_side(item: Regression, answered: str) -> Iterator[str]:
    """One regression as lines of text."""
    yield f"{item.id}: {item.base:.2f} became {item.pruned:.2f}: {_short(item.prompt)}"
    if item.wanted:
        yield f"    wanted        {_short(item.wanted)}"
    if item.base_answer or item.pruned_answer:
        yield f"    base {answered:9}{_short(item.base_answer)}"
        yield f"    pruned {answered:7}{_short(item.pruned_answer)}"


def _line(row: Row, columns: list[str]) -> str:
    """One model's line."""
    cells = [f"{interval(row.measures[name]) if name in row.measures else '-':>24}" for name in columns]
    return f"{row.name:34}{row.bytes:>14,}{''.join(cells)}"


def _paired(rows: tuple[Row, ...]) -> Iterator[str]:
    """Each model against the base, item by item."""
    for row in rows:
        parts = [f"NLL x {interval(row.nll_ratio)}"] if row.nll_ratio else []
        parts += [f"accuracy {interval(row.accuracy_change, '+.3f')}"] if row.accuracy_change else []
        if parts:
            yield f"{row.name} against the base, item by item: {', '.join(parts)}"


def _short(text: str) -> str:
    """A text on one line, cut to fit."""
    line = " ".join(text.split())
    return line if len(line) <= 90 else line[:89] + "…"
