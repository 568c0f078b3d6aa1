"""Copies weights into huge pages of 2 MB: with pages of 4 KB, TLB misses cost a third of the memory bandwidth.

Most file systems map files in pages of 4 KB, so weights are copied if they fit into memory.
"""

import mmap
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from server.engine.choice import Choice
from server.engine.native import resources

PAGE = 2 << 20
BLOCK = 32 << 20
ALIGNMENT = 64
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEMORY = Path("/proc/meminfo")


class Pages:
    """An arena of huge pages; each array starts at a multiple of 64 bytes and keeps its memory alive."""

    def __init__(self) -> None:
        self._block = numpy.empty(0, numpy.uint8)
        self._used = 0

    def keep(self, array: NDArray[Any]) -> NDArray[Any]:
        """Copy an array into the arena."""
        place = self.take(array.nbytes).view(array.dtype)
        place[:] = array
        return place

    def take(self, size: int) -> NDArray[numpy.uint8]:
        """The next `size` bytes, zeroed."""
        if self._used + size > len(self._block):
            self._block = _block(max(BLOCK, size))
            self._used = 0
        place = self._block[self._used : self._used + size]
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return place


def _block(size: int) -> NDArray[numpy.uint8]:
    memory = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and HUGE_PAGES.exists():  # else the system's own page size
        memory.madvise(mmap.MADV_HUGEPAGE)
    return numpy.frombuffer(memory, numpy.uint8)


def choose_pages(size: int, *, tiles: bool, beside: int = 0) -> tuple[Pages | None, Choice]:
    """Choose between copying weights of `size` bytes (an arena) and using the mapped file (None), with the reason.

    `tiles` is true if the kernels read the weights in another order than the file's, which requires a copy. `beside`
    is the size of the KV cache in bytes.
    """
    mapped = "mapped from the file"
    free = available()
    if 2 * size + beside > free:
        keys = f", of which keys and values need {beside >> 20}" if beside else ""
        return None, Choice("weights", mapped, f"{size >> 20} MB cannot be copied: {free >> 20} MB are free{keys}")
    if tiles:
        return Pages(), Choice("weights", "copied into tiles", "so they are read in the order of the computation")
    if not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text():
        return None, Choice("weights", mapped, "this system has no pages of 2 MB")
    return Pages(), Choice("weights", "copied", "pages of 2 MB are read faster than a mapped file's pages of 4 KB")


def available() -> int:
    """Bytes available without swapping, in this control group; practically unlimited if the system does not say."""
    allowed = resources.memory_allowed()
    free = 1 << 62 if allowed is None else max(0, allowed)
    for line in MEMORY.read_text().splitlines() if MEMORY.exists() else ():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return min(free, int(rest.split()[0]) << 10)
    return free
