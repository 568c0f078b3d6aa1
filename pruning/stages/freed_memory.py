"""Keeps freed memory for the next step of training instead of returning it to the system.

glibc maps each large tensor anew, and the system clears its pages at the first touch: a fifth of a training step's CPU
seconds. Other C libraries are left as they are.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""mallopt's numbers (malloc.h): free bytes at the heap's end that are kept, and the most mapped blocks."""
DEFAULTS = {TRIM_THRESHOLD: 128 << 10, MMAP_MAX: 65536}
KEEPING = {TRIM_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}


@contextmanager
def kept_freed_memory() -> Iterator[None]:
    """Take large blocks from the heap and keep them after they are freed; at the end, return what is free."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    for option, value in KEEPING.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
