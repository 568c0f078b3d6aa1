"""What an evaluation found, as one value: the table, the gates, the verdict and the items that regressed most.

It is written as JSON as it stands; the table in the terminal and the page are drawn from it.
"""

import math
from collections.abc import Iterable

import msgspec

from pruning.evaluation.comparison import bootstrap
from pruning.evaluation.comparison.bootstrap import Interval
from pruning.evaluation.comparison.comparison import Compared, Model
from pruning.evaluation.comparison.gates import Judgement, judge
from pruning.evaluation.scoring import scores as measures
from pruning.evaluation.tasks.task import Item, Pair, Question, Task, Text
from pruning.model.base import now
from server.artifact.checkpoint.lineage import Step

WORST = 10


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model: its figures, and the figures against the base, item by item."""

    name: str
    bytes: int
    measures: dict[str, Interval]
    nll_ratio: Interval | None = None
    accuracy_change: Interval | None = None


class Regression(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One item that got worse, side by side."""

    id: str
    prompt: str
    wanted: str
    base: float
    pruned: float
    base_answer: str = ""
    pruned_answer: str = ""


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole result."""

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
    rows: tuple[Row, ...]
    """Base, quantised base, pruned."""
    against_quantised: Interval
    """The measure that ranks, pruned as a ratio to the quantised base; of KL, the difference."""
    gates: tuple[Judgement, ...]
    measure: str
    """What ranks the items; lower is better."""
    changes: dict[str, tuple[float, ...]]
    """By model, how much that measure changed for each item."""
    regressions: tuple[Regression, ...]
    answered: str
    """Whether the answers of regressions are what a model said, or chose among options."""
    layers: dict[str, dict[str, float]]
    """By "sparsity" and, where recorded, "error": a value for each weight."""

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return all(gate.passed for gate in self.gates)


def results(compared: Compared) -> Results:
    """The result of a comparison."""
    task, base, pruned = compared.task, compared.base, compared.pruned
    ranks = (measures.NLL, measures.KL, measures.ERROR)
    rank = next(name for name in ranks if name in base.scores.measures)
    models = (base, compared.quantised, pruned)
    lineage = compared.artifact.lineage
    return Results(
        task=task.name,
        kind=str(type(task).__struct_config__.tag),
        task_digest=task.digest,
        items=len(base.scores.measures[rank]),
        seed=task.seed,
        artifact=compared.artifact.path.resolve().name,
        weights=lineage.files["model.safetensors"],
        base=f"{lineage.base.name}{f' ({lineage.base.note})' if lineage.base.note else ''}",
        created=now(),
        runner=compared.runner,
        rows=tuple(_row(model, base, task) for model in models),
        against_quantised=_against(pruned, compared.quantised, rank, task.seed),
        gates=judge(task, pruned.scores, base.scores),
        measure=rank,
        changes={model.name: _changes(model, base, rank) for model in models[1:]},
        regressions=_regressions(compared, rank),
        answered="said" if base.scores.replies else "chose",
        layers=_layers(lineage.steps),
    )


def _row(model: Model, base: Model, task: Task) -> Row:
    """One model's line."""
    seed = task.seed
    values = dict(model.scores.measures)
    if model.scores.chosen and model is not base:
        pairs = zip(model.scores.chosen, base.scores.chosen, strict=True)
        values[measures.FLIPS] = tuple(float(left != right) for left, right in pairs)
    figures = {name: bootstrap.mean(value, seed) for name, value in values.items()}
    if isinstance(task, Text):
        found = figures[measures.NLL]
        figures[measures.PERPLEXITY] = Interval(*(math.exp(bound) for bound in (found.value, found.low, found.high)))
    nll, accuracy = None, None
    if model is not base and measures.NLL in values:
        nll = bootstrap.ratio(values[measures.NLL], base.scores.measures[measures.NLL], seed)
    if model is not base and measures.ACCURACY in values:
        accuracy = bootstrap.difference(values[measures.ACCURACY], base.scores.measures[measures.ACCURACY], seed)
    return Row(model.name, model.bytes, figures, nll, accuracy)


def _against(pruned: Model, other: Model, rank: str, seed: int) -> Interval:
    """Pruned against the quantised base."""
    own, values = pruned.scores.measures[rank], other.scores.measures[rank]
    return (bootstrap.ratio if rank == measures.NLL else bootstrap.difference)(own, values, seed)


def _changes(model: Model, base: Model, rank: str) -> tuple[float, ...]:
    """How much each item changed from the base."""
    pairs = zip(model.scores.measures[rank], base.scores.measures[rank], strict=True)
    return tuple(own - other for own, other in pairs)


def _regressions(compared: Compared, rank: str) -> tuple[Regression, ...]:
    """The items that got worse, the worst first."""
    base, pruned = compared.base.scores, compared.pruned.scores
    changes = _changes(compared.pruned, compared.base, rank)
    order = sorted(range(len(changes)), key=lambda index: -changes[index])[:WORST]
    return tuple(
        Regression(
            id=compared.plan.items[index].id,
            prompt=next(iter(_texts(compared.plan.items[index]).values())),
            wanted=_wanted(compared.plan.items[index]),
            base=base.measures[rank][index],
            pruned=pruned.measures[rank][index],
            base_answer=base.answers[index] if base.answers else "",
            pruned_answer=pruned.answers[index] if pruned.answers else "",
        )
        for index in order
        if changes[index] > 0
    )


def _texts(item: Item) -> dict[str, str]:
    """The texts of an item; a window of plain text has only its number."""
    return item.texts if type(item) is not Item else {"window": f"window {item.id}"}


def _wanted(item: Item) -> str:
    """The answer that is wanted, where the item has one."""
    if isinstance(item, Pair):
        return item.answer
    return item.options[item.answer] if isinstance(item, Question) else ""


def _layers(steps: Iterable[Step]) -> dict[str, dict[str, float]]:
    """The sparsity that each weight ended with, and the error of its layer where a step recorded it."""
    found: dict[str, dict[str, float]] = {"sparsity": {}, "error": {}}
    for step in steps:
        found["sparsity"] |= step.sparsity
        found["error"] |= {name: loss.error for name, loss in step.losses.items()}
    return {name: values for name, values in found.items() if values}
