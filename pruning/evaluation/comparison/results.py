"""The results of an evaluation as one JSON value: the table, gates, changes per item and worst regressions.

The terminal's table and the HTML page are rendered from this value alone.
"""

import math
from collections.abc import Iterable
from typing import Literal

import msgspec

from pruning.evaluation.comparison.compare import Comparison, ScoredModel
from pruning.evaluation.comparison.gates import Judgement, judge
from pruning.evaluation.scoring import measures
from pruning.evaluation.tasks.task import Item, KnowledgeTask, Pair, Question, Task, TextTask
from pruning.model.base import now
from server.artifact.checkpoint.lineage import Step
from server.intervals import Interval, difference, mean, ratio

WORST = 10
"""Regressions that are listed."""


Role = Literal["base", "found", "quantised", "pruned"]
CHANGES = (measures.ACCURACY, measures.EXACT, measures.CONTAINED)
"""Shares whose changes from the base are reported, paired by item."""


class ModelRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the table: its measures, and its changes from the base, paired by item."""

    role: Role
    name: str
    bytes: int
    measures: dict[str, Interval]
    nll_ratio: Interval | None = None
    changes: dict[str, Interval] = {}
    """Measure -> the model minus the base."""


class Regression(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One item on which the pruned model is worse than the base, with both answers."""

    id: str
    prompt: str
    wanted: str
    """The reference answer, or empty."""
    base: float
    pruned: float
    base_answer: str = ""
    pruned_answer: str = ""


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The results of one artifact on one task."""

    task: str
    kind: str
    task_digest: str
    items: int
    seed: int
    artifact: str
    weights: str
    """SHA-256 of the artifact's weights."""
    base: str
    created: str
    runner: dict[str, str]
    """The runner, its form, the reason it was chosen, and library versions."""
    rows: tuple[ModelRow, ...]
    """The base at 16 bits, the base as found if its bytes are known, the quantised base, and the pruned model."""
    against: dict[str, Interval]
    """Rival ("found", "quantised") -> the ranking measure of pruned relative to it: a ratio for NLL, else a difference.
    """
    gates: tuple[Judgement, ...]
    measure: str
    """The ranking measure: NLL, KL or 1 - accuracy; lower is better."""
    changes: dict[str, tuple[float, ...]]
    """Change of the ranking measure from the base, one value per item, of "quantised" and "pruned"."""
    scores: dict[str, dict[str, tuple[float, ...]]]
    """Model ("base", "quantised", "pruned") -> measure -> one value per item, in the order of `ids`."""
    ids: tuple[str, ...]
    """The id of each item."""
    regressions: tuple[Regression, ...]
    """The items that got worse, the worst first."""
    answered: str
    """"said" or "chose": whether answers were generated or picked from options."""
    layers: dict[str, dict[str, float]]
    """"sparsity" and, if recorded, "error": a value per weight."""
    gains: dict[str, Interval] = {}
    """Measure -> the pruned model with knowledge minus the base without it; empty for other tasks."""

    def row(self, role: Role) -> ModelRow | None:
        """The row of one model; None if the table lacks it."""
        return next((row for row in self.rows if row.role == role), None)

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)


def results_of(comparison: Comparison) -> Results:
    """The results of a comparison."""
    task, base, pruned = comparison.task, comparison.base, comparison.pruned
    ranks = (measures.NLL, measures.KL, measures.ERROR)
    rank = next(name for name in ranks if name in base.scores.measures)
    quantised, found = comparison.quantised, comparison.found
    models: dict[Role, ScoredModel] = {"base": base, "quantised": quantised, "pruned": pruned}
    rivals: dict[Role, ScoredModel] = {"quantised": quantised}
    if found is not None:
        models, rivals = {"base": base, "found": found, **models}, {"found": found, **rivals}
    lineage = comparison.artifact.lineage
    return Results(
        task=task.name,
        kind=str(type(task).__struct_config__.tag),
        task_digest=task.digest,
        items=len(base.scores.measures[rank]),
        seed=task.seed,
        artifact=comparison.artifact.path.resolve().name,
        weights=lineage.files["model.safetensors"],
        base=f"{lineage.base.name}{f' ({lineage.base.note})' if lineage.base.note else ''}",
        created=now(),
        runner=comparison.runner,
        rows=tuple(_row(role, model, base, task) for role, model in models.items()),
        against={role: _relative(pruned, rival, rank, task.seed) for role, rival in rivals.items()},
        gates=judge(task, pruned.scores, base.scores),
        measure=rank,
        changes={"quantised": _changes(quantised, base, rank), "pruned": _changes(pruned, base, rank)},
        scores={role: model.scores.measures for role, model in models.items() if role != "found"},
        ids=tuple(item.id for item in comparison.plan.items),
        regressions=_regressions(comparison, rank),
        answered="said" if base.scores.replies or isinstance(task, KnowledgeTask) else "chose",
        layers=_layers(lineage.steps),
        gains=_gains(comparison),
    )


def _row(role: Role, model: ScoredModel, base: ScoredModel, task: Task) -> ModelRow:
    """The row of `model`; flips and changes are relative to `base`."""
    seed = task.seed
    values = dict(model.scores.measures)
    if model.scores.chosen and role not in ("base", "found"):
        pairs = zip(model.scores.chosen, base.scores.chosen, strict=True)
        values[measures.FLIPS] = tuple(float(left != right) for left, right in pairs)
    figures = {name: mean(value, seed) for name, value in values.items()}
    if isinstance(task, TextTask):
        found = figures[measures.NLL]
        figures[measures.PERPLEXITY] = Interval(*(math.exp(bound) for bound in (found.value, found.low, found.high)))
    if role in ("base", "found"):
        return ModelRow(role, model.name, model.bytes, figures)
    known = base.scores.measures
    nll = ratio(values[measures.NLL], known[measures.NLL], seed) if measures.NLL in known else None
    changed = {name: difference(values[name], known[name], seed) for name in CHANGES if name in known}
    return ModelRow(role, model.name, model.bytes, figures, nll, changed)


def _relative(pruned: ScoredModel, rival: ScoredModel, rank: str, seed: int) -> Interval:
    """The ranking measure of `pruned` relative to `rival`: the ratio of NLL, else the difference."""
    own, values = pruned.scores.measures[rank], rival.scores.measures[rank]
    return (ratio if rank == measures.NLL else difference)(own, values, seed)


def _changes(model: ScoredModel, base: ScoredModel, rank: str) -> tuple[float, ...]:
    """The ranking measure of `model` minus that of `base`, per item."""
    pairs = zip(model.scores.measures[rank], base.scores.measures[rank], strict=True)
    return tuple(own - other for own, other in pairs)


def _gains(comparison: Comparison) -> dict[str, Interval]:
    """What the pruned model gains by knowledge over the base without it, by measure and paired by item."""
    own, alone = comparison.pruned.scores.measures, comparison.base.scores.measures
    return {
        measure: difference(own[measure], alone[other], comparison.task.seed)
        for measure, other in measures.ALONE.items()
        if other in alone
    }


def _regressions(comparison: Comparison, rank: str) -> tuple[Regression, ...]:
    """At most `WORST` items that got worse, the worst first."""
    base, pruned = comparison.base.scores, comparison.pruned.scores
    changes = _changes(comparison.pruned, comparison.base, rank)
    order = sorted(range(len(changes)), key=lambda index: -changes[index])[:WORST]
    return tuple(
        Regression(
            id=comparison.plan.items[index].id,
            prompt=next(iter(_texts(comparison.plan.items[index]).values())),
            wanted=_reference(comparison.plan.items[index]),
            base=base.measures[rank][index],
            pruned=pruned.measures[rank][index],
            base_answer=base.answers[index] if base.answers else "",
            pruned_answer=pruned.answers[index] if pruned.answers else "",
        )
        for index in order
        if changes[index] > 0
    )


def _texts(item: Item) -> dict[str, str]:
    """The texts of an item; a window of plain text is shown by its number."""
    return item.texts if type(item) is not Item else {"window": f"window {item.id}"}


def _reference(item: Item) -> str:
    """The reference answer of an item, or empty."""
    if isinstance(item, Pair):
        return item.answer
    return item.options[item.answer] if isinstance(item, Question) else ""


def _layers(steps: Iterable[Step]) -> dict[str, dict[str, float]]:
    """`sparsity` and `error` -> the last recorded value of each weight; a figure that no step recorded is absent."""
    found: dict[str, dict[str, float]] = {"sparsity": {}, "error": {}}
    for step in steps:
        found["sparsity"] |= step.sparsity
        found["error"] |= {name: loss.error for name, loss in step.losses.items()}
    return {name: values for name, values in found.items() if values}
