"""The directories of a run: refuses outputs that must not be replaced, and cleans up after killed runs.

Removes nothing but artifacts that a recipe made and files that a run itself wrote.
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
from pruning.stages.inputs import THREADS
from server.artifact.checkpoint import lineage as record
from server.errors import ArtifactError, Busy
from server.storage.files import replaced
from server.storage.lock import locked

LOCK, IDENTITY, CANDIDATE = "lock", "identity.json", "artifact"
OURS = re.compile(r"(identity\.json|artifact|stage-\d+|evaluation-\w+)(\.partial)?")
"""Names that a run gives to entries of its work directory."""


def work_directory(output: Path) -> Path:
    """The directory beside `output` that keeps intermediate results until the run ends."""
    return output.with_name(output.name + ".work")


def refuse_output(output: Path, base: str) -> None:
    """Raise RecipeError if an artifact made from `base` must not be written to `output`."""
    if outer := next((parent for parent in output.parents if (parent / record.FILE).exists()), None):
        raise RecipeError(
            f"{output} lies in the artifact {outer}, whose record names every file: name another directory"
        )
    if not output.exists():
        return
    if output.is_mount():
        raise RecipeError(f"{output} is a mount point, which cannot be replaced as a whole: name a directory in it")
    if not output.is_dir() or (any(output.iterdir()) and not (output / record.FILE).exists()):
        raise RecipeError(f"{output} exists and is not an artifact: name a new directory, or remove it yourself first")
    if output == locate(base).resolve():
        raise RecipeError(f"{output} is the base of this recipe: name another output directory")
    if (output / record.FILE).exists():
        _refuse_artifact(output)


def _refuse_artifact(output: Path) -> None:
    """Raise RecipeError unless the artifact at `output` was made by a recipe and holds no other files."""
    try:
        lineage = record.read(output)
    except ArtifactError as error:
        raise RecipeError(f"{error.message}: name a new directory, or remove it yourself first") from None
    if not lineage.steps:
        raise RecipeError(f"{output} is an imported model, not the result of a recipe: name another directory")
    known = {record.FILE, record.SIGNATURE, *lineage.files}
    if foreign := sorted(file.name for file in output.iterdir() if file.name not in known):
        raise RecipeError(
            f"{output / foreign[0]} does not belong to the artifact in {output} and would be lost with it: "
            "move it elsewhere"
        )


def restore_replaced(output: Path) -> None:
    """Put back the artifact that a run was replacing when it was killed between two renames.

    Raises RecipeError if `output` is the root directory.
    """
    if not output.name:
        raise RecipeError(f"{output} cannot be replaced: name a directory in it")
    old = replaced(output)
    if old.exists() and not output.exists():
        old.rename(output)


def remove_leftovers(output: Path, identity: dict[str, str]) -> None:
    """Finish the clean-up of a run that was killed after it had published `output`.

    The work directory of another recipe, or one with foreign files, is left alone.
    """
    shutil.rmtree(replaced(output), ignore_errors=True)
    work = work_directory(output)
    if not work.is_dir():
        return
    found = _identity(work)
    if found is not None and not can_resume(work, identity):
        return
    if found is None and any(not OURS.fullmatch(entry.name) for entry in work.iterdir() if entry.name != LOCK):
        return
    with suppress(Busy, RecipeError), locked(work / LOCK, f"making {output}"):
        clear(work)
        shutil.rmtree(work)


def run_identity(identity: dict[str, str]) -> dict[str, str]:
    """What must be equal for a run to resume: its inputs, and the versions of the software.

    The number of threads is recorded too; the resumed run takes it over.
    """
    return identity | versions()


def can_resume(work: Path, identity: dict[str, str]) -> bool:
    """Whether `work` was left by an interrupted run of the same inputs and software, with any number of threads."""
    found = _identity(work) or {}
    return THREADS in found and found | {THREADS: ""} == run_identity(identity) | {THREADS: ""}


def begun_threads(work: Path) -> int:
    """The number of threads of the run that left `work`."""
    return int(_identity(work)[THREADS])


def _identity(work: Path) -> Any:
    """The identity of the run that left `work`; None if it recorded none."""
    file = work / IDENTITY
    return json.loads(file.read_bytes()) if file.exists() else None


def clear(work: Path) -> bool:
    """Remove everything but the lock; returns whether there was anything to remove.

    Raises RecipeError, before removing anything, for an entry that no run wrote. The identity goes first, so that a
    kill in between cannot leave it beside half of the results.
    """
    entries = sorted(entry for entry in work.iterdir() if entry.name != LOCK)
    for entry in entries:
        if not OURS.fullmatch(entry.name):
            raise RecipeError(
                f"{entry} was not written by secateur, which needs {work} for its work: move it elsewhere"
            )
    (work / IDENTITY).unlink(missing_ok=True)
    for entry in entries:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
    return bool(entries)
