"""The chain of a lineage: each step starts from the weights that the previous one produced, through all parents.

Reads the record alone; `Artifact.check_last_link` compares the weights file with the last step.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from server.artifact.checkpoint.lineage import FILE, WEIGHTS, Lineage, Step, address
from server.errors import ArtifactError

EXPORT = "export"
"""The technique of a step that changes the file format and no weight."""


def generations(lineage: Lineage) -> Iterator[Lineage]:
    """The record and its parents, youngest first."""
    current: Lineage | None = lineage
    while current is not None:
        yield current
        current = current.parent


def links(lineage: Lineage) -> list[Step]:
    """Every step since the first base, oldest first."""
    return [step for record in reversed(list(generations(lineage))) for step in record.steps]


def exported(lineage: Lineage) -> str:
    """The format of an export that this package cannot read; empty for an artifact."""
    last = lineage.steps[-1] if lineage.steps else None
    if last is None or last.technique != EXPORT or (last.options.get("to") == "hf" and WEIGHTS in lineage.files):
        return ""
    return str(last.options.get("to"))


def check(directory: Path, lineage: Lineage) -> None:
    """Raise ArtifactError, naming the broken step, unless the artifact's record is one unbroken chain."""
    for child in generations(lineage):
        recorded = address(child.parent) if child.parent else ""
        if child.parent_digest != recorded:
            raise _refusal(directory, f"the record of {child.base.name} is not the one that parent_digest names")
    steps = links(lineage)
    for number, (before, after) in enumerate(pairwise(steps), start=2):
        if before.digest != after.parent_digest:
            raise _refusal(
                directory,
                f"step {number} ({after.technique}) did not start from the weights that {before.technique} made",
            )


def _refusal(directory: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{directory / FILE} is forged or damaged: {what}; copy the artifact again")
