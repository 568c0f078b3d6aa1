"""Locates the files that a recipe names: a path, or `package:module/file` inside an installed Python package.

A package is located but never imported: none of its code runs.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pruning.errors import SourceMissing
from pruning.recipe.parts import RANGE, joined
from server.artifact.checkpoint.lineage import SIGNATURE
from server.errors import ConfigError
from server.storage.packages import located
from server.text.tokenizer_files import TEMPLATE

OFF_GRID = "off-grid:"
"""Prefix of a base whose off-grid copy is pruned."""
SELF = "self"
"""The source of self-calibration: sequences sampled from the base."""


def locate(reference: str) -> Path:
    """The existing path that `reference` names, a base's without `OFF_GRID`; raises SourceMissing."""
    try:
        path = reference.removeprefix(OFF_GRID)
        return joined(path) if RANGE.search(path) else located(path)
    except ConfigError as error:
        raise SourceMissing(error.message) from None


def digest_with_template(path: Path, template: Path | None) -> str:
    """`digest_of` a base that is given the chat template in the file `template`, as if it were one of its files."""
    if template is None:
        return digest_of(path)
    files = [path] if path.is_file() else _files(path)
    return _digest_of_files({file.name: file for file in files} | {TEMPLATE: template})


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of a directory: of a line `digest  name` for each of its files, sorted by name.

    Signature files are left out, so that signing a model does not change its digest.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return _digest_of_files({file.name: file for file in _files(path)})


def _files(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.is_file() and entry.name != SIGNATURE]


def _digest_of_files(files: Mapping[str, Path]) -> str:
    lines = [f"{digest_of(file)}  {name}\n" for name, file in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
