"""Scores an artifact, its dense base and the quantised base of about equal bytes on one task.

The scores of each model are cached under a digest of all that decides them: an interrupted evaluation resumes with the
next model, and the base is scored once for many artifacts.
"""

import gc
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec

from pruning.data.retokenise import Retokeniser
from pruning.evaluation.comparison import quantised_base
from pruning.evaluation.comparison.quantised_base import Quantisation
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.planning import (
    carry_out,
    loaded_model,
    options_for,
    plan_task,
    refuse_pruned_vocabulary,
    retokeniser_for,
    token_count,
)
from pruning.evaluation.scoring.plans.harness import HarnessPlan
from pruning.evaluation.scoring.plans.knowledge import KnowledgePlan
from pruning.evaluation.scoring.plans.plan import LoadedModel, ScoringPlan, check_plan
from pruning.evaluation.tasks.task import BehaviourTask, Task
from pruning.model.settings import positions
from pruning.model.versions import versions
from server.artifact.checkpoint.lineage import WEIGHTS
from server.artifact.checkpoint.reader import Artifact
from server.engine.choice import Choice
from server.engine.runners.choosing import Wanted, choices, load_runner
from server.storage.files import write_atomically

BASE, PRUNED = "base", "pruned"
Change = Callable[[Artifact], AbstractContextManager[Artifact]]
"""Makes the artifact to score from another one, and removes it afterwards."""


class ScoredModel(NamedTuple):
    """One model of a comparison with its scores."""

    name: str
    bytes: int
    scores: Scores


class Comparison(NamedTuple):
    """The scores of all models on one task."""

    task: Task
    plan: ScoringPlan
    artifact: Artifact
    base: ScoredModel
    found: ScoredModel | None
    """The base as its publisher stores it, whose scores are those of the same values at 16 bits; None if unknown."""
    quantised: ScoredModel
    pruned: ScoredModel
    runner: dict[str, str]
    """The runner of all three models, the form it computes in, the reason it was chosen, and library versions."""


def compare(artifact: Artifact, base: Artifact, task: Task, cache: Path, wanted: Wanted = "auto") -> Comparison:
    """Score the three models through the `wanted` runner; "auto" takes the one that will serve `artifact`.

    Raises TaskError or ConfigError before any model is loaded.
    """
    plan, retokeniser = plan_task(task, base), retokeniser_for(base, artifact)
    if retokeniser:
        refuse_pruned_vocabulary(task)
        check_plan(plan, positions(artifact.config), token_count(retokeniser))
    scoring = _CachedScoring(task, plan, cache / "evaluations", common_choices(artifact, base, wanted))
    dense = scoring.score(base, BASE)
    quantisation, scores = scoring.score_quantised(base, artifact.size)
    own = scoring.score(artifact, PRUNED, retokeniser=retokeniser)
    return Comparison(
        task,
        plan,
        artifact,
        ScoredModel("base, 16 bits", base.size, dense),
        _as_found(artifact, dense),
        ScoredModel(quantisation.name, quantisation.bytes, scores),
        ScoredModel("pruned", artifact.size, own),
        scoring.runner,
    )


def _as_found(artifact: Artifact, dense: Scores) -> ScoredModel | None:
    """The base of `artifact` with the bytes that were recorded of it as found, and the scores `dense`."""
    evaluation, note = artifact.lineage.evaluation, artifact.lineage.base.note.removesuffix(", dequantised")
    if evaluation is None or not evaluation.bytes.get("found"):
        return None
    return ScoredModel(f"base as found{f' ({note})' if note else ''}", evaluation.bytes["found"], dense)


def common_choices(artifact: Artifact, base: Artifact, wanted: Wanted) -> tuple[Choice, ...]:
    """The choices of one runner for both models, so that their figures compare; the choice of the runner is first."""
    own, other = choices(artifact, wanted), choices(base, wanted)
    return own if other[0].value in (own[0].value, "native") else other


class _CachedScoring:
    """Scores models one at a time and caches their scores; keeps the base loaded for behaviour tasks."""

    def __init__(self, task: Task, plan: ScoringPlan, folder: Path, choices: tuple[Choice, ...]) -> None:
        self._plan, self._folder, self._choice = plan, folder, choices[0]
        self._behaviour = isinstance(task, BehaviourTask)
        self._base: LoadedModel | None = None
        used = {choice.subject: choice.value for choice in choices} | versions()
        self.runner = used | {"reason": self._choice.reason}
        jobs = [[(request.ids, request.first) for request in job] for job in plan.jobs]
        own = plan.digest if isinstance(plan, HarnessPlan | KnowledgePlan) else ""
        self._identity = [task.digest, own, msgspec.json.encode(jobs).decode(), sorted(used.items())]

    def score(
        self,
        artifact: Artifact,
        name: str,
        note: str = "",
        change: Change = nullcontext,
        retokeniser: Retokeniser | None = None,
    ) -> Scores:
        """Score the artifact that the context manager `change` makes of `artifact`, or read its cached scores.

        `note` enters the cache key and must identify `change`. `retokeniser` converts the plan's ids to the artifact's
        tokens.
        """
        path = self._path(artifact, note)
        if path.exists() and not (self._behaviour and name == BASE):
            return msgspec.json.decode(path.read_bytes(), type=Scores)
        path.parent.mkdir(parents=True, exist_ok=True)
        with change(artifact) as changed:
            kind: Wanted = "native" if self._choice.value == "native" else "transformers"
            runner = load_runner(changed, kind, options_for(self._plan, retokeniser))
            model = loaded_model(runner, changed, self._plan, retokeniser)
            scores = carry_out(self._plan, model, self._base, f"evaluating the {name} model")
        if self._behaviour and name == BASE:
            self._base = model
        write_atomically(path, msgspec.json.encode(scores))
        del runner, model, changed
        gc.collect()  # the runner and its model refer to each other
        return scores

    def score_quantised(self, base: Artifact, size: int) -> tuple[Quantisation, Scores]:
        """The quantisation of `base` nearest to `size` bytes, and the scores of the quantised base."""
        quantisation = quantised_base.nearest_in_size(base, size)

        def change(dense: Artifact) -> AbstractContextManager[Artifact]:
            return quantised_base.quantised(dense, quantisation, self._folder)

        return quantisation, self.score(base, "quantised", str(quantisation), change)

    def _path(self, artifact: Artifact, note: str) -> Path:
        """The cache file of one model's scores, named by a digest of all that decides them."""
        parts = [artifact.lineage.files[WEIGHTS], artifact.lineage.files["config.json"], note, *self._identity]
        return self._folder / f"scores-{hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:24]}.json"
