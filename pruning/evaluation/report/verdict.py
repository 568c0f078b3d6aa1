"""The verdict of an evaluation, in sentences for the terminal and the page."""

from pruning.evaluation.comparison.bootstrap import Interval
from pruning.evaluation.comparison.results import Results
from pruning.evaluation.scoring.measures import LABELS, NLL

GATES = {
    "max_nll_ratio": "the negative log-likelihood relative to the base",
    "max_accuracy_drop": "the accuracy lost",
    "max_kl": "the KL divergence from the base, in nats per token,",
    "max_missed": "the share of right passages not among the first three",
    "max_off_topic_answered": "the share of off-topic questions that are answered",
    "max_on_topic_refused": "the share of on-topic questions that are refused",
    "max_unsupported": "the share of words that nothing cited supports",
    "max_wrong": "the share of wrong choices with knowledge",
}


def headline(results: Results) -> str:
    """The verdict in a few words."""
    if not results.gates:
        return "Not judged: the task sets no gates"
    failed = sum(not gate.passed for gate in results.gates)
    return f"Failed: {failed} of {len(results.gates)} gates" if failed else "Passed: every gate holds"


def sentences(results: Results) -> list[str]:
    """One sentence per gate, and one that weighs pruning against quantisation at about equal bytes."""
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
        lines.append(f"{size}; {results.items} items are too few to tell which of the two scores better ({words}).")
    return lines


def computed(results: Results) -> str:
    """A sentence on the runner that computed the figures: its name, why it was chosen, and its other choices."""
    parts = dict(results.runner)
    runner, reason = parts.pop("runner"), parts.pop("reason")
    form = ", ".join(f"{name} {value}" for name, value in parts.items())
    return f"Computed by the server's {runner} runner, because {reason}: {form}."


def interval(found: Interval, form: str = ".3f") -> str:
    """A figure with its interval: "1.234 [1.200, 1.270]"."""
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"
