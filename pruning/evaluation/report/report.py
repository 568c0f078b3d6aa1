"""Writes the report of a comparison: a table to standard output, and HTML and JSON files."""

from pathlib import Path

import msgspec

from pruning.evaluation.comparison.compare import Comparison
from pruning.evaluation.comparison.results import Results, results_of
from pruning.evaluation.report.page import page
from pruning.evaluation.report.terminal import table
from server.artifact.checkpoint.reader import Artifact
from server.storage.files import write_atomically


def report_folder(artifact: Artifact) -> Path:
    """The default folder of an artifact's reports: ARTIFACT.evaluation."""
    path = artifact.path.resolve()
    return path.with_name(f"{path.name}.evaluation")


def write_report(comparison: Comparison, folder: Path) -> Results:
    """Print the results of `comparison`, write them to `folder` as HTML and JSON, and return them."""
    found, task = results_of(comparison), comparison.task
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(found), indent=2)
    write_atomically(folder / f"{task.name}.json", text)
    write_atomically(folder / f"{task.name}.html", page(found).encode())
    print(table(found))
    print(f"\nThe report: {folder / task.name}.html and .json")
    return found
