"""An artifact beside its dense base and beside the quantised base of about equal bytes, all on one task.

Each model's scores are kept under what decides them, so that an evaluation that was stopped goes on with the next
model, and the base is scored once for many artifacts.
"""

import gc
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pruning.base import versions
from pruning.evaluation import quantised
from pruning.evaluation.plan import Plan, Subject
from pruning.evaluation.score import carry_out, make, subject
from pruning.evaluation.scores import Scores
from pruning.evaluation.task import Behaviour, Task
from pruning.weights import write_bytes
from server.checkpoint.lineage import WEIGHTS
from server.checkpoint.reader import Artifact
from server.engine.runners.transformers_runner import choose_device, choose_dtype, load

logger = logging.getLogger(__name__)

BASE, PRUNED = "base", "pruned"


class Model(NamedTuple):
    """One of the models that were scored."""

    name: str
    bytes: int
    scores: Scores


class Compared(NamedTuple):
    """The scores of all three, by the same task."""

    task: Task
    plan: Plan
    artifact: Artifact
    base: Model
    quantised: Model
    pruned: Model
    runner: dict[str, str]
    """What computed, and in which precision."""


def compare(artifact: Artifact, base: Artifact, task: Task, cache: Path) -> Compared:
    """Score the three models through the server's transformers runner; raises TaskError before any is loaded."""
    plan = make(task, artifact)
    run = _Run(task, plan, cache / "evaluations")
    dense = run.model(base, BASE, None)
    choice, scores = run.rounded(base, artifact.size)
    own = run.model(artifact, PRUNED, None)
    return Compared(
        task,
        plan,
        artifact,
        Model("base, 16 bits", base.size, dense),
        Model(choice.name, choice.bytes, scores),
        Model("pruned", artifact.size, own),
        run.runner,
    )


class _Run:
    """Scores one model after another; holds the base where answers are compared with its own."""

    def __init__(self, task: Task, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._behaviour = isinstance(task, Behaviour)
        self._base: Subject | None = None
        device = choose_device()
        dtype = str(choose_dtype(device)[0]).removeprefix("torch.")
        self.runner = {"device": str(device), "precision": dtype, **versions()}
        jobs = [[(request.ids, request.first) for request in job] for job in plan.jobs]
        self._identity = [task.digest, msgspec.json.encode(jobs).decode(), sorted(self.runner.items())]

    def model(self, artifact: Artifact, name: str, change: Callable[[Any], None] | None, note: str = "") -> Scores:
        """The scores of `artifact`, once `change` has changed it, which `note` tells from other changes."""
        path = self._path(artifact, note)
        if path.exists() and not (self._behaviour and name == BASE):
            return msgspec.json.decode(path.read_bytes(), type=Scores)
        model = load(artifact)
        if change is not None:
            change(model)
        scored = subject(model, artifact, self._plan)
        scores = carry_out(self._plan, scored, self._base, f"evaluating the {name} model")
        if self._behaviour and name == BASE:
            self._base = scored
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, msgspec.json.encode(scores))
        del model, scored
        gc.collect()  # the runner and its model refer to each other
        return scores

    def rounded(self, base: Artifact, wanted: int) -> tuple[quantised.Choice, Scores]:
        """The quantised base of about `wanted` bytes, and its scores."""
        choice = quantised.choose(_shapes(base), base.size, wanted)
        scores = self.model(base, "quantised", lambda model: quantised.quantise(model, choice), choice.name)
        return choice, scores

    def _path(self, artifact: Artifact, note: str) -> Path:
        """Where the scores of one model lie: a name made from all that decides them."""
        parts = [artifact.lineage.files[WEIGHTS], artifact.lineage.files["config.json"], note, *self._identity]
        return self._folder / f"scores-{hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:24]}.json"


def _shapes(base: Artifact) -> Any:
    """The model of `base` without its weights."""
    from pruning.base import skeleton

    return skeleton(base.config)
