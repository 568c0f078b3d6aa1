"""Keys and values of skills' own prefixes on disk, so that the first question after a restart is warm.

A file holds the shared prefix of one skill for one model, layout and version. It is named by a digest of these and of
the prefix's token ids, and has a digest of its contents: a damaged or foreign file is left out with a warning.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence as Ids
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from server.artifact.checkpoint.lineage import Lineage, address
from server.engine.blocks import Blocks
from server.engine.choice import Choice
from server.engine.sequence import Sequence
from server.storage.files import write_atomically

KIND = "secateur prefix 1"
SUFFIX = ".prefix.safetensors"
OF_A_SKILL = 2
"""Prefixes kept of one skill: an experiment has two revisions."""
MOST_BYTES = 1 << 30
"""Of all files; those least recently used are deleted."""
UNUSED_SECONDS = 30 * 86_400
"""Files that no start has used for this long are deleted."""
Bytes = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]
logger = logging.getLogger(__name__)


@runtime_checkable
class BlockStore(Protocol):
    """A runner whose cache can be copied."""

    @property
    def layout(self) -> str:
        """What the bytes of a block depend on, beside the model."""

    @property
    def block_bytes(self) -> int:
        """Bytes of the keys and values of one block."""

    def read_blocks(self, blocks: Ids[int]) -> Bytes:
        """A copy of blocks, uint8 [blocks, block_bytes]."""
        ...

    def write_blocks(self, blocks: Ids[int], values: Bytes) -> None:
        """Put such a copy back."""


class Prefix(Struct, frozen=True):
    """A skill's prefix as read from a file."""

    skill: str
    hashes: tuple[bytes, ...]
    """Prefix hash of each block."""
    values: Any
    """uint8 [blocks, block_bytes]."""


class PrefixFiles:
    """The prefixes in `folder`, at most `most_bytes`; `model` names the weights, tokenizer and version.

    `restore` and `keep` are called by the engine's thread, or before it starts.
    """

    def __init__(self, folder: Path, runner: BlockStore, model: str, *, most_bytes: int) -> None:
        self._folder = folder
        self._runner = runner
        self._origin = hashlib.sha256(f"{KIND} {model} {runner.layout} {runner.block_bytes}".encode()).hexdigest()
        self._most_bytes = most_bytes
        self._known: set[bytes] = set()
        self._writer = ThreadPoolExecutor(1, "prefixes")

    def restore(self, blocks: Blocks) -> int:
        """Put the prefixes into the cache, the latest used first; returns the number of blocks."""
        total = 0
        for path in self._files():
            prefix = self._read(path)
            if prefix is None:
                continue
            places = [place for digest in prefix.hashes if (place := blocks.reserve(digest)) is not None]
            if places:  # also a prefix's first blocks: they can be found from now on
                self._runner.write_blocks(places, prefix.values[: len(places)])
            total += len(places)
            if len(places) < len(prefix.hashes):  # the cache has room for no more
                break
            self._known.add(prefix.hashes[-1])
        return total

    def keep(self, sequence: Sequence, blocks: Blocks) -> None:
        """Write a sequence's shared prefix, once all its blocks are computed, in a thread of its own."""
        count = sequence.shared_blocks
        if not count or sequence.registered < count or sequence.hashes[count - 1] in self._known:
            return
        hashes = tuple(sequence.hashes[:count])
        places = [place for digest in hashes if (place := blocks.find(digest)) is not None]
        if len(places) == count:
            self._known.add(hashes[-1])
            self._writer.submit(self._write, Prefix(sequence.skill, hashes, self._runner.read_blocks(places)))

    def close(self) -> None:
        """Wait for what is being written."""
        self._writer.shutdown()

    def _write(self, prefix: Prefix) -> None:
        hashes = numpy.frombuffer(b"".join(prefix.hashes), numpy.uint8).reshape(-1, 32)
        about = {"kind": KIND, "origin": self._origin, "skill": prefix.skill, "digest": _digest(hashes, prefix.values)}
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path(prefix.hashes), save({"hashes": hashes, "values": prefix.values}, about))
            self._delete_surplus(prefix.skill)
        except OSError as error:
            logger.warning("The prefix of the skill %r is not kept in %s: %s", prefix.skill, self._folder, error)

    def _path(self, hashes: Ids[bytes]) -> Path:
        name = hashlib.sha256(self._origin.encode() + hashes[-1]).hexdigest()
        return self._folder / f"{name}{SUFFIX}"

    def _files(self) -> list[Path]:
        """The files, the latest used first."""
        if not self._folder.is_dir():
            return []
        return sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)

    def _read(self, path: Path) -> Prefix | None:
        """The prefix in a file of this model; None for another's, and with a warning for a damaged one."""
        try:
            prefix = self._checked(path)
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            logger.warning("%s is not used: %s. Delete it; the skill's prefix is computed again", path, error)
            return None
        if prefix:
            with suppress(OSError):
                os.utime(path)
        return prefix

    def _checked(self, path: Path) -> Prefix | None:
        """The prefix in a file; None for another model's, ValueError for a damaged one."""
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("kind") == KIND and about.get("origin", self._origin) != self._origin:
                return None
            hashes, values = file.get_tensor("hashes"), file.get_tensor("values")
        if hashes.dtype != numpy.uint8 or hashes.ndim != 2 or hashes.shape[1] != 32 or not len(hashes):
            raise ValueError("its hashes have another shape")
        if values.dtype != numpy.uint8 or values.shape != (len(hashes), self._runner.block_bytes):
            raise ValueError("its keys and values have another shape")
        prefix = Prefix(about.get("skill", ""), tuple(row.tobytes() for row in hashes), values)
        if about.get("digest") != _digest(hashes, values) or path != self._path(prefix.hashes):
            raise ValueError("its digest does not match")
        return prefix

    def _delete_surplus(self, skill: str) -> None:
        """Delete what exceeds `most_bytes` and OF_A_SKILL, what is long unused, and other models' prefixes of it."""
        of_skill = total = 0
        for path in self._files():
            about, stat = _about(path), path.stat()
            mine = about.get("skill") == skill
            of_skill += mine
            total += stat.st_size
            stale = time.time() - stat.st_mtime > UNUSED_SECONDS
            if stale or total > self._most_bytes or (mine and of_skill > OF_A_SKILL):
                path.unlink(missing_ok=True)
                total -= stat.st_size


def choose_prefixes(folder: Path | None, runner: object, lineage: Lineage) -> tuple[PrefixFiles | None, Choice]:
    """The files of a model's prefixes, and whether there are any."""
    if folder is None:
        return None, Choice("prefixes on disk", "off", "`prefix_cache` names no folder")
    if not isinstance(runner, BlockStore):
        return None, Choice("prefixes on disk", "off", "only the native runner's cache can be kept")
    model = f"{address(lineage)} {version('secateur')}"
    files = PrefixFiles(folder, runner, model, most_bytes=MOST_BYTES)
    return files, Choice("prefixes on disk", "on", f"at most {MOST_BYTES >> 20} MB in {folder}")


def _digest(hashes: Bytes, values: Bytes) -> str:
    digest = hashlib.sha256(hashes.tobytes())
    digest.update(numpy.ascontiguousarray(values).reshape(-1).data)
    return digest.hexdigest()


def _about(path: Path) -> dict[str, str]:
    """The metadata of a file; empty for a damaged one."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, 1 << 20)))
        return dict(header.get("__metadata__", {}))
    except (OSError, ValueError, AttributeError):
        return {}
