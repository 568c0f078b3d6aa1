"""The directory that an export is written to: it appears under its name whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import ExportError


@contextmanager
def fresh(path: Path) -> Iterator[Path]:
    """A directory beside `path` to write into, renamed to `path` at the end and removed where anything goes wrong.

    Raises ExportError where something stands at `path`, or the disk takes no more.
    """
    if path.exists() or path.is_symlink():
        raise ExportError(f"{path} exists already: name a new directory, or remove that one yourself first")
    partial = path.with_name(path.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in [*partial.iterdir(), partial]:
            _flush(file)
        partial.rename(path)
        _flush(path.parent)
    except OSError as error:
        raise ExportError(f"{error.filename or path} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    """Make a file or a directory's entries survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
