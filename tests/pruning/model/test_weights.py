from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.model.weights import Overlay, RenamedWeights, Shards, parameters, write_file
from server.storage.files import write_atomically


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    save_file({"a": torch.arange(4.0), "b": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"c": torch.zeros(3)}, tmp_path / "2.safetensors")
    return Shards([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])


def test_shards_are_one_source(shards: Shards) -> None:
    assert shards.names() == ["a", "b", "c"]
    assert shards.tensor("a").tolist() == [0, 1, 2, 3]
    assert parameters(shards) == (9, 4)


def test_an_overlay_shows_the_changed_tensors(shards: Shards, tmp_path: Path) -> None:
    write_file(tmp_path / "new.safetensors", {"b": torch.full((2,), 7.0)})
    overlay = Overlay(shards, [tmp_path / "new.safetensors"])
    assert overlay.names() == shards.names()
    assert overlay.tensor("b").tolist() == [7, 7]
    assert overlay.tensor("a").tolist() == [0, 1, 2, 3]
    assert shards.tensor("b").tolist() == [1, 1]


def test_renamed_shows_only_the_new_names(shards: Shards) -> None:
    renamed = RenamedWeights(shards, {"x": "c"})
    assert renamed.names() == ["x"]
    assert renamed.tensor("x").tolist() == [0, 0, 0]


def test_scales_go_with_their_weight_until_it_is_replaced(shards: Shards, tmp_path: Path) -> None:
    write_file(tmp_path / "first", {"b": torch.ones(2), "b.scales": torch.tensor([3.0])})
    write_file(tmp_path / "second", {"b": torch.zeros(2)})
    quantised = Overlay(shards, [tmp_path / "first"])
    scales = RenamedWeights(quantised, {"x": "b", "y": "a"}).scales("x")
    assert scales is not None
    assert scales.tolist() == [3]
    assert RenamedWeights(quantised, {"x": "b", "y": "a"}).scales("y") is None
    assert "b.scales" not in quantised.names()
    assert Overlay(quantised, [tmp_path / "second"]).scales("b") is None


def test_views_are_written_with_their_visible_values(tmp_path: Path) -> None:
    write_file(tmp_path / "file", {"t": torch.arange(6.0).view(2, 3).T})
    assert load_file(tmp_path / "file")["t"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("lost")))
    with pytest.raises(OSError, match="lost"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
