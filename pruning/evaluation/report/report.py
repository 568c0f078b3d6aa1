"""`secateur evaluate ARTIFACT --task TASK`: scores, judges, and writes the report."""

from pathlib import Path

import msgspec

from pruning.evaluation.comparison.comparison import Compared, compare
from pruning.evaluation.comparison.results import Results, results
from pruning.evaluation.comparison.verdict import table
from pruning.evaluation.report.page import page
from pruning.evaluation.tasks import task as tasks
from server.artifact.checkpoint.reader import Artifact, find_base
from server.engine.runners.choosing import Wanted
from server.storage.files import write_atomically

GATE_FAILED = 3
"""The exit code for it."""


def evaluate(path: Path, task_file: Path, cache: Path, report: Path | None, wanted: Wanted = "auto") -> int:
    """Print the table, write the report as HTML and as JSON; returns 0, or `GATE_FAILED`."""
    task = tasks.read(task_file)
    artifact = Artifact.open(path)
    base = find_base(cache, artifact.lineage.base.digest)
    compared = compare(artifact, base, task, cache, wanted)
    return 0 if reported(compared, report or beside(artifact)).passed else GATE_FAILED


def beside(artifact: Artifact) -> Path:
    """Where its reports go unless another place is named."""
    path = artifact.path.resolve()
    return path.with_name(f"{path.name}.evaluation")


def reported(compared: Compared, folder: Path) -> Results:
    """The result of a comparison, printed as a table and written into `folder` as HTML and JSON."""
    found, task = results(compared), compared.task
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(found), indent=2)
    write_atomically(folder / f"{task.name}.json", text)
    write_atomically(folder / f"{task.name}.html", page(found).encode())
    print(table(found))
    print(f"\nThe report: {folder / task.name}.html and .json")
    return found
