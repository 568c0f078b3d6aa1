"""Judges a recipe's artifact by the recipe's tasks and records the outcome in the artifact.

An artifact that fails is kept for inspection, but the registry does not promote it without a signed override.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pruning.errors import GATE_FAILED, TaskError
from pruning.evaluation.comparison.compare import compare
from pruning.evaluation.comparison.results import Results
from pruning.evaluation.report.report import report_folder, write_report
from pruning.evaluation.scoring.planning import plan_task, refuse_pruned_vocabulary
from pruning.evaluation.tasks.reading import read_task, unmeasured_gates, with_gates
from pruning.evaluation.tasks.task import Task
from pruning.recipe.options import Vocabulary
from pruning.recipe.recipe import Recipe
from pruning.run.record import write_record
from server.artifact.checkpoint import bom, card
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import GateResult
from server.artifact.checkpoint.reader import Artifact
from server.errors import Busy
from server.storage.files import publish

logger = logging.getLogger(__name__)

REWRITTEN = (card.FILE, bom.FILE, record.FILE, record.SIGNATURE)


class AcceptanceTasks:
    """The tasks of a recipe, checked against its base before any work; raises TaskError."""

    def __init__(self, recipe: Recipe, base: Artifact, cache: Path) -> None:
        self._base, self._cache = base, cache
        given = [read_task(Path(file)) for file in recipe.tasks]
        _check_gates(recipe, given)
        self._tasks = [with_gates(task, recipe.gates) for task in given]
        names = [task.name for task in self._tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TaskError(f"two tasks of the recipe are called {twice[0]}: their reports would overwrite each other")
        for task in self._tasks:
            plan_task(task, base)
            if any(isinstance(stage, Vocabulary) for stage in recipe.stages):
                refuse_pruned_vocabulary(task)

    def judge(self, artifact: Artifact) -> int:
        """Report every task and record its gates in `artifact`; returns 0, or `GATE_FAILED` if a gate failed."""
        found = []
        for task in self._tasks:
            print()
            found.append(write_report(compare(artifact, self._base, task, self._cache), report_folder(artifact)))
        gates = tuple(_gate_result(results) for results in found if results.gates)
        record_gates(artifact, gates)
        if all(gate.passed for gate in gates):
            return 0
        failed = ", ".join(gate.task for gate in gates if not gate.passed)
        print(f"\n{artifact.path} is kept and marked as not passed ({failed}): only a signed override promotes it")
        return GATE_FAILED


def record_gates(artifact: Artifact, gates: tuple[GateResult, ...]) -> None:
    """Replace `artifact` atomically by one whose record and documents hold `gates`.

    Drops a signature, which covered the old record; raises Busy if another run replaced the artifact meanwhile.
    """
    evaluation = artifact.lineage.evaluation
    assert evaluation is not None, "the pipeline evaluates what it publishes"
    if evaluation.gates == gates:
        return
    if (artifact.path / record.SIGNATURE).exists():
        logger.warning("the record of %s changed, so its signature was removed: sign it again", artifact.path)
    marked = artifact.path.with_name(f".{artifact.path.name}.marked")
    shutil.rmtree(marked, ignore_errors=True)
    marked.mkdir()
    for file in artifact.path.iterdir():
        if file.name not in REWRITTEN:
            _link_or_copy(file, marked / file.name)
    if record.read(artifact.path) != artifact.lineage:
        shutil.rmtree(marked)
        raise Busy(f"{artifact.path} was replaced while its tasks were judged: run this command again")
    lineage = msgspec.structs.replace(artifact.lineage, evaluation=msgspec.structs.replace(evaluation, gates=gates))
    publish(write_record(Artifact(marked, lineage, artifact.config), lineage).path, artifact.path)


def _link_or_copy(file: Path, target: Path) -> None:
    """Hard-link `file` to `target`, or copy it if the file system has no hard links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


def _check_gates(recipe: Recipe, given: Sequence[Task]) -> None:
    """Raise TaskError for a gate of the recipe that none of its tasks measures."""
    lacking = set.intersection(*(unmeasured_gates(task) for task in given))
    for gate in sorted(lacking):
        if getattr(recipe.gates, gate) is not None:
            raise TaskError(f"gates.{gate} of the recipe cannot be judged: none of its tasks measures it")


def _gate_result(found: Results) -> GateResult:
    """The part of a task's results that the record keeps: the worse bound and the limit of each gate."""
    figures = {gate.gate: gate.measured.high for gate in found.gates}
    limits = {f"{gate.gate} limit": gate.limit for gate in found.gates}
    return GateResult(found.task, found.passed, figures | limits)
