"""Freed memory is reused within, and returned afterwards; seen by the system's count of touched pages."""

import ctypes
import resource
from pathlib import Path

import pytest

from pruning.stages.freed_memory import kept_freed_memory

SIZE, PAGE = 8 << 20, resource.getpagesize()
LIBC = ctypes.CDLL(None)
LIBC.malloc.restype, LIBC.malloc.argtypes, LIBC.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]


def touched(times: int) -> int:
    """Pages that the system cleared while a block was taken, written and freed so often."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        block = LIBC.malloc(SIZE)
        ctypes.memset(block, 1, SIZE)
        LIBC.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_a_freed_block_is_taken_again_without_new_pages() -> None:
    with kept_freed_memory():
        touched(1)
        assert touched(20) < SIZE // PAGE / 4


def test_what_is_free_goes_back_to_the_system_afterwards() -> None:
    with kept_freed_memory():
        blocks = [LIBC.malloc(SIZE) for _ in range(8)]
        for block in blocks:
            ctypes.memset(block, 1, SIZE)
        for block in blocks:
            LIBC.free(block)
        kept = resident()
    assert resident() < kept - 6 * SIZE


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with kept_freed_memory():
        pass
