"""Atomic, durable changes of files: a reader, also after a loss of power, finds the old content or the new, whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file `path` by one with `content`, atomically and durably."""
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """Yield a path to write a file to, which replaces `path` at the end of the `with` block, atomically and durably.

    The file is written beside `path` as `NAME.partial`, or to `partial`, which must be on the same file system. If the
    block raises, it is removed and `path` stays as it was.
    """
    partial = partial or path.with_name(path.name + ".partial")
    try:
        yield partial
        sync(partial)
        move(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder durably; a file at `target` is replaced."""
    source.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush the files in `folder` and its entries to the disk."""
    for path in [*folder.iterdir(), folder]:
        sync(path)


def publish(made: Path, path: Path) -> None:
    """Rename the folder `made` to `path`, then remove the one that it replaces."""
    old = replaced(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    move(made, path)
    shutil.rmtree(old, ignore_errors=True)


def replaced(path: Path) -> Path:
    """Where `publish` keeps the replaced folder for a moment; a kill may leave it there."""
    return path.with_name(f".{path.name}.old")
