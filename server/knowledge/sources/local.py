"""Files and folders: nothing outside of a folder is read, whatever its links say."""

import fnmatch
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from server.errors import ConfigError
from server.knowledge.readers.formats import SUFFIXES
from server.knowledge.settings import Source
from server.knowledge.sources import Content, Gone, Item, Listing, Refused, left_out
from server.storage.packages import located


def listing(source: Source, folder: Path, largest: int) -> Listing:
    """The files of a source; raises ConfigError if its path does not exist. `largest` is in bytes."""
    root = located(source.path, folder)
    if root.is_file():
        return Listing([_item(source, root, root.name, source.path, largest)], {})
    if not root.is_dir():
        raise ConfigError(f"{source.path} is neither a file nor a folder")
    items: list[Item] = []
    failed: dict[str, str] = {}
    for path in sorted(_files(root, failed)):
        below = path.relative_to(root).as_posix()
        if not _wanted(source, below):
            continue
        name = f"{source.path.rstrip('/')}/{below}"
        if not _inside(path, root):
            failed[name] = "it is a link that leads out of the folder"
        else:
            items.append(_item(source, path, below, name, largest))
    return Listing(items[: source.most_documents], failed | left_out(source, len(items)))


def _files(root: Path, failed: dict[str, str]) -> Iterator[Path]:
    """Every file below `root` whose name does not begin with a dot; links to folders are not entered."""

    def refused(error: OSError) -> None:
        failed[str(error.filename)] = f"the folder cannot be read: {error.strerror}"

    for folder, folders, files in os.walk(root, onerror=refused):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _wanted(source: Source, below: str) -> bool:
    taken = source.include or (("*",) if source.format != "auto" else ())
    known = any(fnmatch.fnmatch(below, pattern) for pattern in taken) if taken else _suffix(below) in SUFFIXES
    return known and not any(fnmatch.fnmatch(below, pattern) for pattern in source.exclude)


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return False


def _item(source: Source, path: Path, below: str, name: str, largest: int) -> Item:
    quoted = quote(below)
    url = source.url.format(path=quoted, name=quoted.removesuffix(Path(quoted).suffix)) if source.url else name

    def fetch(stamp: str) -> Content | None:
        return _read(path, stamp, largest)

    return Item(name, url, source, fetch)


def _read(path: Path, stamp: str, largest: int) -> Content | None:
    """The content of a regular file of at most `largest` bytes, unless `stamp` is still its stamp."""
    try:
        # Not blocking: opening a named pipe would wait for a writer.
        descriptor = os.open(path.resolve(), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Gone("it was removed while the folder was read") from None
    except OSError as error:
        raise Refused(f"it cannot be opened: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("it is no regular file")
        if status.st_size > largest:
            raise Refused(f"it has {status.st_size >> 20} MB, more than {largest >> 20} (`document_megabytes`)")
        found = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        if found == stamp:
            return None
        try:
            data = file.read(largest + 1)
        except OSError as error:
            raise Refused(f"it cannot be read: {error.strerror}") from None
    if len(data) > largest:
        raise Refused(f"it grew beyond {largest >> 20} MB while it was read")
    return Content(data, found)
