"""An artifact beside its dense base and beside the quantised base of about equal bytes, all on one task.

Each model's scores are kept under what decides them, so that an evaluation that was stopped goes on with the next
model, and the base is scored once for many artifacts.
"""

import gc
import hashlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec

from pruning.data.retokenise import Retokeniser
from pruning.evaluation.comparison import quantised
from pruning.evaluation.scoring.plans.harness import HarnessPlan
from pruning.evaluation.scoring.plans.plan import Plan, Subject, check
from pruning.evaluation.scoring.score import carry_out, length, make, needs, refuse_fewer_tokens, spelling, subject
from pruning.evaluation.scoring.scores import Scores
from pruning.evaluation.tasks.task import Behaviour, Task
from pruning.model.settings import positions
from pruning.model.versions import versions
from server.artifact.checkpoint.lineage import WEIGHTS
from server.artifact.checkpoint.reader import Artifact
from server.engine.choice import Choice
from server.engine.runners.choosing import Wanted, choices, load_runner
from server.storage.files import write_atomically

logger = logging.getLogger(__name__)

BASE, PRUNED = "base", "pruned"
Change = Callable[[Artifact], AbstractContextManager[Artifact]]


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
    """What computed all three, in which form, and why that."""


def compare(artifact: Artifact, base: Artifact, task: Task, cache: Path, wanted: Wanted = "auto") -> Compared:
    """Score the three models through the runner that will serve `artifact`, or the one that is `wanted`.

    Raises TaskError or ConfigError before any model is loaded.
    """
    plan, spelt = make(task, base), spelling(base, artifact)
    if spelt:
        refuse_fewer_tokens(task)
        check(plan, positions(artifact.config), length(spelt))
    run = _Run(task, plan, cache / "evaluations", computing(artifact, base, wanted))
    dense = run.model(base, BASE)
    choice, scores = run.rounded(base, artifact.size)
    own = run.model(artifact, PRUNED, spelt=spelt)
    return Compared(
        task,
        plan,
        artifact,
        Model("base, 16 bits", base.size, dense),
        Model(choice.name, choice.bytes, scores),
        Model("pruned", artifact.size, own),
        run.runner,
    )


def computing(artifact: Artifact, base: Artifact, wanted: Wanted) -> tuple[Choice, ...]:
    """What computes the artifact and its base, the runner first: one that can run both, as figures are compared."""
    own, other = choices(artifact, wanted), choices(base, wanted)
    return own if other[0].kernel in (own[0].kernel, "native") else other


class _Run:
    """Scores one model after another; holds the base where answers are compared with its own."""

    def __init__(self, task: Task, plan: Plan, folder: Path, computing: tuple[Choice, ...]) -> None:
        self._plan, self._folder, self._choice = plan, folder, computing[0]
        self._behaviour = isinstance(task, Behaviour)
        self._base: Subject | None = None
        used = {choice.subject: choice.kernel for choice in computing} | versions()
        self.runner = used | {"reason": self._choice.reason}
        jobs = [[(request.ids, request.first) for request in job] for job in plan.jobs]
        own = plan.digest if isinstance(plan, HarnessPlan) else ""
        self._identity = [task.digest, own, msgspec.json.encode(jobs).decode(), sorted(used.items())]

    def model(
        self,
        artifact: Artifact,
        name: str,
        note: str = "",
        change: Change = nullcontext,
        spelt: Retokeniser | None = None,
    ) -> Scores:
        """The scores of `artifact`, or of what `change` makes of it, which `note` tells from other changes.

        `spelt` writes the plan's ids in those of the artifact.
        """
        path = self._path(artifact, note)
        if path.exists() and not (self._behaviour and name == BASE):
            return msgspec.json.decode(path.read_bytes(), type=Scores)
        path.parent.mkdir(parents=True, exist_ok=True)
        with change(artifact) as changed:
            kind: Wanted = "native" if self._choice.kernel == "native" else "transformers"
            runner = load_runner(changed, kind, needs(self._plan, spelt))
            scored = subject(runner, changed, self._plan, spelt)
            scores = carry_out(self._plan, scored, self._base, f"evaluating the {name} model")
        if self._behaviour and name == BASE:
            self._base = scored
        write_atomically(path, msgspec.json.encode(scores))
        del runner, scored, changed
        gc.collect()  # the runner and its model refer to each other
        return scores

    def rounded(self, base: Artifact, wanted: int) -> tuple[quantised.Choice, Scores]:
        """The quantised base of about `wanted` bytes, and its scores."""
        choice = quantised.choose(base, wanted)

        def change(dense: Artifact) -> AbstractContextManager[Artifact]:
            return quantised.quantised(dense, choice, self._folder)

        return choice, self.model(base, "quantised", choice.name, change)

    def _path(self, artifact: Artifact, note: str) -> Path:
        """Where the scores of one model lie: a name made from all that decides them."""
        parts = [artifact.lineage.files[WEIGHTS], artifact.lineage.files["config.json"], note, *self._identity]
        return self._folder / f"scores-{hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:24]}.json"
