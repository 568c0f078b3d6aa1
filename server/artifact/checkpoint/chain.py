"""The chain of a lineage: each step begins with the weights that the one before it made, through all parents.

Reads the record alone; that the last link is what the weights file holds, the commands check that read weights.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from server.artifact.checkpoint.lineage import FILE, WEIGHTS, Lineage, Step, address
from server.errors import ArtifactError

EXPORT = "export"
"""The technique of a link that changes the files and no weight."""


def generations(lineage: Lineage) -> Iterator[Lineage]:
    """The record and its parents, the youngest first."""
    current: Lineage | None = lineage
    while current is not None:
        yield current
        current = current.parent


def links(lineage: Lineage) -> list[Step]:
    """Every step from the first base on, the oldest first."""
    return [step for record in reversed(list(generations(lineage))) for step in record.steps]


def exported(lineage: Lineage) -> str:
    """The format of an export that other software reads and this package does not; empty for an artifact."""
    last = lineage.steps[-1] if lineage.steps else None
    if last is None or last.technique != EXPORT or (last.options.get("to") == "hf" and WEIGHTS in lineage.files):
        return ""
    return str(last.options.get("to"))


def check(directory: Path, lineage: Lineage) -> None:
    """Raise ArtifactError, naming the link, unless the record of the artifact in `directory` is one whole chain."""
    for child in generations(lineage):
        recorded = address(child.parent) if child.parent else ""
        if child.parent_digest != recorded:
            raise _refusal(directory, f"the record of {child.base.name} is not the one that parent_digest names")
    steps = links(lineage)
    for number, (before, after) in enumerate(pairwise(steps), start=2):
        if before.digest != after.parent_digest:
            raise _refusal(
                directory, f"step {number} ({after.technique}) did not begin with what {before.technique} made"
            )


def _refusal(directory: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{directory / FILE} is forged or damaged: {what}; copy the artifact again")
