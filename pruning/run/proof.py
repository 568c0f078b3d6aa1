"""The tasks that a recipe names, at the end of its run: the artifact is judged by them, and its record says how.

An artifact that fails is kept, so that what went wrong can be looked at; the registry does not promote it as it is.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pruning.errors import TaskError
from pruning.evaluation.comparison.comparison import compare
from pruning.evaluation.comparison.results import Results
from pruning.evaluation.report.report import GATE_FAILED, beside, reported
from pruning.evaluation.scoring.score import make, refuse_fewer_tokens
from pruning.evaluation.tasks import task as tasks
from pruning.evaluation.tasks.task import Task
from pruning.recipe.options import Vocabulary
from pruning.recipe.recipe import Recipe
from pruning.run.pipeline import documented
from server.artifact.checkpoint import bom, card
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import GateResult
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import publish
from server.errors import Busy

logger = logging.getLogger(__name__)

REWRITTEN = (card.FILE, bom.FILE, record.FILE, record.SIGNATURE)


class Proof:
    """The tasks of one recipe, read and found to fit the base; raises TaskError otherwise."""

    def __init__(self, recipe: Recipe, base: Artifact, cache: Path) -> None:
        self._base, self._cache = base, cache
        given = [tasks.read(Path(file)) for file in recipe.tasks]
        _check_gates(recipe, given)
        self._tasks = [tasks.held_to(task, recipe.gates) for task in given]
        names = [task.name for task in self._tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TaskError(f"two tasks of the recipe are called {twice[0]}: their reports would overwrite each other")
        for task in self._tasks:
            make(task, base)
            if any(isinstance(stage, Vocabulary) for stage in recipe.stages):
                refuse_fewer_tokens(task)

    def judge(self, artifact: Artifact) -> int:
        """Print and write the result of every task, mark the artifact, and return 0, or 3 where a gate failed."""
        found = []
        for task in self._tasks:
            print()
            found.append(reported(compare(artifact, self._base, task, self._cache), beside(artifact)))
        gates = tuple(_gate(one) for one in found if one.gates)
        mark(artifact, gates)
        if all(gate.passed for gate in gates):
            return 0
        failed = ", ".join(gate.task for gate in gates if not gate.passed)
        print(f"\n{artifact.path} is kept and marked as not passed ({failed}): only a signed override promotes it")
        return GATE_FAILED


def mark(artifact: Artifact, gates: tuple[GateResult, ...]) -> None:
    """Put the results into the record of `artifact` and the documents made from it; whole, or not at all.

    A signature over another record than this is dropped, since it would not hold.
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
            _linked(file, marked / file.name)
    if record.read(artifact.path) != artifact.lineage:
        shutil.rmtree(marked)
        raise Busy(f"{artifact.path} was replaced while its tasks were judged: run this command again")
    lineage = msgspec.structs.replace(artifact.lineage, evaluation=msgspec.structs.replace(evaluation, gates=gates))
    publish(documented(Artifact(marked, lineage, artifact.config), lineage).path, artifact.path)


def _linked(file: Path, target: Path) -> None:
    """The file under another name too; a copy, where the file system has no such links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


def _check_gates(recipe: Recipe, given: Sequence[Task]) -> None:
    """Refuse a gate of the recipe that none of its tasks can be judged by."""
    lacking = set.intersection(*(tasks.unmeasured(task) for task in given))
    for gate in sorted(lacking):
        if getattr(recipe.gates, gate) is not None:
            raise TaskError(f"gates.{gate} of the recipe cannot be judged: none of its tasks measures it")


def _gate(found: Results) -> GateResult:
    """What the record keeps of a result: the worse bound of each gate, and its limit."""
    figures = {gate.gate: gate.measured.high for gate in found.gates}
    limits = {f"{gate.gate} limit": gate.limit for gate in found.gates}
    return GateResult(found.task, found.passed, figures | limits)
