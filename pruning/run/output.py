"""The place of an artifact: what must not be replaced is refused before any work, what a killed run left is put right.

Nothing is ever removed but an artifact that a recipe has made, and what a run has left in names of its own.
"""

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from pruning.errors import RecipeError
from pruning.model.versions import versions
from pruning.recipe.sources import locate
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.writer import replaced
from server.errors import ArtifactError, Busy
from server.storage.lock import locked

LOCK, IDENTITY, CANDIDATE = "lock", "identity.json", "artifact"
OURS = re.compile(r"(identity\.json|artifact|stage-\d+|evaluation-\w+)(\.partial)?")
"""What a run leaves in its work directory."""


def work_directory(output: Path) -> Path:
    """Where the stages leave their results while `output` is made."""
    return output.with_name(output.name + ".work")


def refuse(output: Path, base: str) -> None:
    """Raise RecipeError where an artifact at `output`, made from `base`, would take the place of something else."""
    if outer := next((parent for parent in output.parents if (parent / record.FILE).exists()), None):
        raise RecipeError(
            f"{output} lies in the artifact {outer}, whose record names every file: name another directory"
        )
    if not output.exists():
        return
    if output.is_mount():
        raise RecipeError(f"{output} is a mount point, which cannot be replaced as a whole: name a directory in it")
    if not output.is_dir() or (any(output.iterdir()) and not (output / record.FILE).exists()):
        raise RecipeError(f"{output} exists and is no artifact: name a new directory, or remove it yourself first")
    if output == locate(base).resolve():
        raise RecipeError(f"{output} is the base of this recipe: name another directory for what is made from it")
    if (output / record.FILE).exists():
        _refuse_artifact(output)


def _refuse_artifact(output: Path) -> None:
    """Raise RecipeError where the artifact at `output` is not one that may be replaced."""
    try:
        lineage = record.read(output)
    except ArtifactError as error:
        raise RecipeError(f"{error.message}: name a new directory, or remove it yourself first") from None
    if not lineage.steps:
        raise RecipeError(f"{output} is a model that was imported, not one that a recipe made: name another directory")
    known = {record.FILE, record.SIGNATURE, *lineage.files}
    if foreign := sorted(file.name for file in output.iterdir() if file.name not in known):
        raise RecipeError(
            f"{output / foreign[0]} is not of the artifact that stands there, and would go with it: move it elsewhere"
        )


def restore(output: Path) -> None:
    """Put back the artifact that a run was replacing when it was killed between two renames.

    Raises RecipeError where `output` is no place for one.
    """
    if not output.name:
        raise RecipeError(f"{output} cannot be replaced: name a directory in it")
    old = replaced(output)
    if old.exists() and not output.exists():
        old.rename(output)


def tidy(output: Path, identity: dict[str, str]) -> None:
    """Remove what a run that was killed once `output` stood there had left to remove; another recipe's work stays."""
    shutil.rmtree(replaced(output), ignore_errors=True)
    work = work_directory(output)
    if not work.is_dir() or (found := _identity(work)) not in (mark(identity), None):
        return
    if found is None and any(not OURS.fullmatch(entry.name) for entry in work.iterdir() if entry.name != LOCK):
        return
    with suppress(Busy, RecipeError), locked(work / LOCK, f"making {output}"):
        clear(work)
        shutil.rmtree(work)


def mark(identity: dict[str, str]) -> dict[str, str]:
    """What a work directory says that it is for: the same inputs, in the hands of the same software."""
    return identity | versions()


def begun(work: Path, identity: dict[str, str]) -> bool:
    """Whether an interrupted run for the same inputs has left `work`."""
    return bool(_identity(work) == mark(identity))


def _identity(work: Path) -> Any:
    """What the run that has left `work` was for; None where it does not say so."""
    file = work / IDENTITY
    return json.loads(file.read_bytes()) if file.exists() else None


def clear(work: Path) -> bool:
    """Remove all but the lock, the identity first: a kill in between must not leave it beside half of the files."""
    entries = sorted(entry for entry in work.iterdir() if entry.name != LOCK)
    for entry in entries:
        if not OURS.fullmatch(entry.name):
            raise RecipeError(f"{entry} was left by no run of secateur: move it elsewhere, as {work} is used for work")
    (work / IDENTITY).unlink(missing_ok=True)
    for entry in entries:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
    return bool(entries)
