"""The verdict of an evaluation, in sentences for the terminal and the page."""

from pruning.evaluation.comparison.results import Results
from pruning.evaluation.scoring.measures import ACCURACY, LABELS, NLL
from server.intervals import Interval

GENERATION_FALL = 0.05
"""A fall of a share of greedy replies that is warned of even where its interval includes zero."""
GATES = {
    "max_nll_ratio": "the negative log-likelihood relative to the base",
    "max_accuracy_drop": "the accuracy lost",
    "max_exact_drop": "the share of exact greedy answers lost",
    "max_contained_drop": "the share of greedy answers with the reference in them that was lost",
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
    """One sentence per gate, and one for each other form of the base that weighs pruning against it."""
    lines = [
        f"{gate.gate} {'holds' if gate.passed else 'does not hold'}: {GATES[gate.gate]} is {gate.measured.value:.3g}, "
        f"at worst {gate.measured.high:.3g}; at most {gate.limit:g} is allowed."
        for gate in results.gates
    ]
    lines += [_weighed(results, role, against) for role, against in results.against.items()]
    return lines + generation(results)


def _weighed(results: Results, role: str, found: Interval) -> str:
    """One sentence that weighs the pruned model against another form of its base."""
    rival, pruned = (next(row for row in results.rows if row.role == name) for name in (role, "pruned"))
    even = 1 if results.measure == NLL else 0
    kind, advice = ("The quantised base", "quantise instead, or recover more")
    if role == "found":
        kind, advice = "The base as found", "serve it as it is"
    note = rival.name.removeprefix("base as found").removeprefix("base, ").strip("() ")
    size = f"{kind} ({note})" if note else kind
    size += f" has {rival.bytes / pruned.bytes:.2f} x the bytes"
    words = f"{LABELS[results.measure]}: pruned {'/' if even else '-'} {role} is {interval(found)}"
    if found.low > even:
        more = rival.bytes > pruned.bytes
        return f"{size} and scores better{'' if more else f': {advice}'} ({words})."
    if found.high < even:
        return f"{size} and scores worse ({words})."
    return f"{size}; {results.items} items are too few to tell which of the two scores better ({words})."


def generation(results: Results) -> list[str]:
    """A warning for each measure of greedy replies that falls while the choices hold; the better bounds decide."""
    pruned = next(row for row in results.rows if row.role == "pruned")
    choices = pruned.changes.get(ACCURACY)
    if choices is None or choices.high < 0:
        return []
    return [
        f"Warning: choices hold (accuracy {interval(choices, '+.3f')}), but generation falls: {LABELS[name]}, "
        f"pruned - base is {interval(change, '+.3f')}. Gate on max_{name}_drop."
        for name, change in pruned.changes.items()
        if name != ACCURACY and (change.high < 0 or change.value <= -GENERATION_FALL)
    ]


def computed(results: Results) -> str:
    """A sentence on the runner that computed the figures: its name, why it was chosen, and its other choices."""
    parts = dict(results.runner)
    runner, reason = parts.pop("runner"), parts.pop("reason")
    form = ", ".join(f"{name} {value}" for name, value in parts.items())
    return f"Computed by the server's {runner} runner, because {reason}: {form}."


def interval(found: Interval, form: str = ".3f") -> str:
    """A figure with its interval: "1.234 [1.200, 1.270]"."""
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"
