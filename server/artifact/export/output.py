"""The directory that an export is written to: it appears under its name whole, or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import ExportError
from server.storage.files import move, sync_folder

INSIDE = "secateur-export"
"""All that lies in the directory beside `path`: so it is known as ours where an export was killed."""


@contextmanager
def fresh(path: Path) -> Iterator[Path]:
    """A directory beside `path` to write into, renamed to `path` at the end and removed where anything goes wrong.

    Raises ExportError where something stands at `path` or beside it where it is written, or the disk takes no more.
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
    """Remove what an export that was killed has left; raises ExportError for anything else that stands there."""
    if partial.is_dir() and not partial.is_symlink() and {entry.name for entry in partial.iterdir()} <= {INSIDE}:
        shutil.rmtree(partial)
    elif partial.exists() or partial.is_symlink():
        raise ExportError(f"{partial} is in the way, as the export is written there first: move it elsewhere")
