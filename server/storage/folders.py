"""New folders, which appear complete or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import SecateurError
from server.storage.files import move, sync_folder

INSIDE = "secateur"
"""The only entry of `NAME.partial`, by which the remains of a killed command are recognised."""


@contextmanager
def fresh(path: Path, refusal: type[SecateurError]) -> Iterator[Path]:
    """Yield a folder beside `path` to write into; it is renamed to `path` at the end, or removed on any error.

    Raises `refusal` if `path` exists, if `NAME.partial` holds anything of somebody else's, or if writing fails.
    """
    if path.exists() or path.is_symlink():
        raise refusal(f"{path} exists already: name a new directory, or remove that one yourself first")
    partial = path.with_name(path.name + ".partial")
    _clear(partial, refusal)
    try:
        folder = partial / INSIDE
        folder.mkdir(parents=True)
        yield folder
        for made in [*(entry for entry in folder.rglob("*") if entry.is_dir()), folder]:
            sync_folder(made)
        move(folder, path)
    except OSError as error:
        raise refusal(f"{error.filename or path} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear(partial: Path, refusal: type[SecateurError]) -> None:
    """Remove the remains of a killed command; raises `refusal` if anything else is in the way."""
    if partial.is_dir() and not partial.is_symlink() and {entry.name for entry in partial.iterdir()} <= {INSIDE}:
        shutil.rmtree(partial)
    elif partial.exists() or partial.is_symlink():
        raise refusal(f"{partial} is in the way, as {partial.stem} is written there first: move it elsewhere")
