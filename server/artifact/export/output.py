"""The output directory of an export, which appears complete or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import ExportError
from server.storage.files import move, sync_folder

INSIDE = "secateur-export"
"""The only entry of `NAME.partial`, by which the remains of a killed export are recognised."""


@contextmanager
def fresh(path: Path) -> Iterator[Path]:
    """Yield a directory beside `path` to write into; it is renamed to `path` at the end, or removed on any error.

    Raises ExportError if `path` or `NAME.partial` exists, or if writing fails.
    """
    if path.exists() or path.is_symlink():
        raise ExportError(f"{path} exists already: name a new directory, or remove that one yourself first")
    partial = path.with_name(path.name + ".partial")
    _clear(partial)
    try:
        folder = partial / INSIDE
        folder.mkdir(parents=True)
        yield folder
        sync_folder(folder)
        move(folder, path)
    except OSError as error:
        raise ExportError(f"{error.filename or path} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear(partial: Path) -> None:
    """Remove the remains of a killed export; raises ExportError if anything else is in the way."""
    if partial.is_dir() and not partial.is_symlink() and {entry.name for entry in partial.iterdir()} <= {INSIDE}:
        shutil.rmtree(partial)
    elif partial.exists() or partial.is_symlink():
        raise ExportError(f"{partial} is in the way, as the export is written there first: move it elsewhere")
