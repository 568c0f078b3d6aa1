"""`secateur evaluate ARTIFACT --task TASK`: scores, judges, and writes the report."""

from pathlib import Path

import msgspec

from pruning.evaluation import task as tasks
from pruning.evaluation.comparison import compare
from pruning.evaluation.page import page
from pruning.evaluation.results import Results, results
from pruning.evaluation.verdict import table
from pruning.weights import write_bytes
from server.checkpoint.reader import Artifact, find_base

GATE_FAILED = 3
"""The exit code for it."""


def evaluate(path: Path, task_file: Path, cache: Path, report: Path | None) -> int:
    """Print the table, write the report as HTML and as JSON; returns 0, or `GATE_FAILED`."""
    task = tasks.read(task_file)
    artifact = Artifact.open(path)
    base = find_base(cache, artifact.lineage.base.digest)
    return 0 if reported(artifact, base, task, cache, report).passed else GATE_FAILED


def reported(artifact: Artifact, base: Artifact, task: tasks.Task, cache: Path, report: Path | None) -> Results:
    """The result of `task`, printed as a table and written as HTML and JSON, into `report` or beside the artifact."""
    found = results(compare(artifact, base, task, cache))
    path = artifact.path.resolve()
    folder = report or path.with_name(f"{path.name}.evaluation")
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(found), indent=2)
    write_bytes(folder / f"{task.name}.json", text)
    write_bytes(folder / f"{task.name}.html", page(found).encode())
    print(table(found))
    print(f"\nThe report: {folder / task.name}.html and .json")
    return found
