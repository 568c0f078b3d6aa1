"""Atomic writes: the old content or the new, and nothing beside it."""

import os
from pathlib import Path

import pytest

from server.storage.files import move, replacing, write_atomically


def replace_half(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError("stopped")


def test_a_failed_write_keeps_the_old_content_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError, match="stopped"):
        replace_half(path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("lost")))
    with pytest.raises(OSError, match="lost"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_the_disk_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, fsync = tmp_path / "file", [], os.fsync

    def watched(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", watched)
    write_atomically(path, b"content")
    assert synced == [("file.partial", False), (tmp_path.name, True)]


def test_a_file_may_be_written_elsewhere_and_a_folder_moved(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    with replacing(folder / "file", outside) as partial:
        partial.write_bytes(b"content")
        assert not list(folder.iterdir())
    move(folder, tmp_path / "moved")
    assert (tmp_path / "moved" / "file").read_bytes() == b"content"
    assert not outside.exists()
