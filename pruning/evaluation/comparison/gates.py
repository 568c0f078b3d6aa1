"""Judges gates by the worse bound of the confidence interval, so that noise cannot pass one."""

import msgspec

from pruning.evaluation.scoring import measures
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.tasks.task import Task
from server.intervals import Interval, difference, mean, ratio

DROPS = {
    "max_accuracy_drop": measures.ACCURACY,
    "max_exact_drop": measures.EXACT,
    "max_contained_drop": measures.CONTAINED,
}
"""Gates on what a measure loses against the base, paired by item."""
SHARES = {
    "max_missed": measures.HIT_3,
    "max_off_topic_answered": measures.OFF_TOPIC_REFUSED,
    "max_unsupported": measures.SUPPORTED,
    "max_wrong": measures.ACCURACY,
}
"""Gates on one minus a measure of the pruned model."""


class Judgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One gate with its limit, the measured figure, and whether it passed."""

    gate: str
    limit: float
    measured: Interval
    passed: bool


def judge(task: Task, scores: Scores, base: Scores) -> tuple[Judgement, ...]:
    """Judge `scores` by every gate of `task`, relative to the scores of `base`."""
    found = []
    gates, seed = task.gates, task.seed
    if gates.max_nll_ratio is not None:
        own, other = scores.measures[measures.NLL], base.measures[measures.NLL]
        found.append(_judged("max_nll_ratio", gates.max_nll_ratio, ratio(own, other, seed)))
    for gate, measure in DROPS.items():
        limit = getattr(gates, gate)
        if limit is not None:
            own, other = scores.measures[measure], base.measures[measure]
            found.append(_judged(gate, limit, difference(other, own, seed)))
    if gates.max_kl is not None:
        found.append(_judged("max_kl", gates.max_kl, mean(scores.measures[measures.KL], seed)))
    for gate, measure in SHARES.items():
        limit = getattr(gates, gate)
        if limit is not None:
            found.append(_judged(gate, limit, mean([1 - value for value in scores.measures[measure]], seed)))
    if gates.max_on_topic_refused is not None:
        refused = mean(scores.measures[measures.ON_TOPIC_REFUSED], seed)
        found.append(_judged("max_on_topic_refused", gates.max_on_topic_refused, refused))
    return tuple(found)


def _judged(gate: str, limit: float, measured: Interval) -> Judgement:
    """Judge one gate: lower is better for all of them, so the interval's upper bound must not exceed `limit`."""
    return Judgement(gate, limit, measured, measured.high <= limit)
