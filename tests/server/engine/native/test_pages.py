"""Where weights are kept, and copies into the arena."""

from pathlib import Path

import numpy
import pytest

from server.engine.native import pages
from server.engine.native.pages import ALIGNMENT, BLOCK, Pages, available, choose_pages


def test_arrays_are_copied_onto_lines_and_do_not_overlap() -> None:
    room = Pages()
    arrays = [
        numpy.arange(size, dtype=kind) for size, kind in ((3, numpy.uint8), (70, numpy.uint16), (9, numpy.uint64))
    ]
    kept = [room.keep(array) for array in arrays]
    arrays[0][:] = 9  # the copies are not views of what they were made from
    for array, copy in zip(arrays[1:], kept[1:], strict=True):
        assert (copy == array).all()
    assert kept[0].tolist() == [0, 1, 2]
    assert all(copy.ctypes.data % ALIGNMENT == 0 for copy in kept)


def test_an_array_larger_than_a_block_gets_its_own_block() -> None:
    room = Pages()
    large = room.take(BLOCK + 1)
    large[-1] = 7
    after = room.keep(numpy.ones(100, numpy.uint8))
    assert (large[-1], after.sum(), len(large)) == (7, 100, BLOCK + 1)


def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, huge: str | None) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {free >> 10} kB\n")
    monkeypatch.setattr(pages, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(pages, "HUGE_PAGES", tmp_path / "enabled")
    if huge:
        (tmp_path / "enabled").write_text(huge)


@pytest.mark.parametrize(
    ("free", "huge", "tiles", "value", "reason"),
    [
        (210 << 20, "always [madvise] never", True, "copied into tiles", "in the order"),
        (210 << 20, None, True, "copied into tiles", "in the order"),
        (210 << 20, "always [madvise] never", False, "copied", "pages of 2 MB"),
        (210 << 20, "always madvise [never]", False, "mapped from the file", "no pages of 2 MB"),
        (
            190 << 20,
            "[always] madvise never",
            True,
            "mapped from the file",
            "100 MB cannot be copied: 190 MB are free",
        ),
    ],
)
def test_the_place_of_weights_follows_from_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, huge: str | None, tiles: bool, value: str, reason: str
) -> None:
    memory(tmp_path, monkeypatch, free, huge)
    room, choice = choose_pages(100 << 20, tiles=tiles)
    assert (room is not None) == value.startswith("copied")
    assert (choice.subject, choice.value) == ("weights", value)
    assert reason in choice.reason


def test_keys_and_values_need_room_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory(tmp_path, monkeypatch, 300 << 20, None)
    assert choose_pages(100 << 20, tiles=True, beside=90 << 20)[0] is not None
    room, choice = choose_pages(100 << 20, tiles=True, beside=110 << 20)
    assert room is None
    assert choice.reason.endswith("300 MB are free, of which keys and values need 110")


def test_without_meminfo_memory_is_unlimited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MEMORY", tmp_path / "none")
    assert available() > 1 << 40
