"""Writer and reader together, on real files, and with the stock safetensors library as witness."""

import gc
import hashlib
import json
import os
from pathlib import Path
from typing import IO

import msgspec
import pytest
import safetensors.torch
import torch
from torch import Tensor

from server.artifact.checkpoint.lineage import Base, Lineage
from server.artifact.checkpoint.reader import Artifact, find_base
from server.artifact.checkpoint.writer import CheckpointWriter
from server.errors import ArtifactError
from server.storage.digests import FileDigests

RECORD = Lineage(created="2026-11-24T00:00:00Z", base=Base(name="tiny", digest="0"), recipe={}, steps=(), versions={})


def weights() -> dict[str, Tensor]:
    """One matrix that packs, one that does not, and one whose length breaks alignment."""
    torch.manual_seed(0)
    half = torch.randn(8, 192).bfloat16()
    half[:, ::2] = 0
    return {"a.weight": torch.randn(3, 5), "b.weight": half, "norm.weight": torch.randn(32)}


def write(path: Path, *, packed: bool = True) -> Lineage:
    with CheckpointWriter(path, packed=packed) as writer:
        writer.text("config.json", '{"model_type": "tiny"}')
        for name, tensor in weights().items():
            writer.add(name, tensor)
        return writer.finish(RECORD)


def test_reading_returns_what_was_written(tmp_path: Path) -> None:
    lineage = write(tmp_path / "model")
    artifact = Artifact.open(tmp_path / "model")
    assert artifact.lineage == lineage
    assert artifact.config == {"model_type": "tiny"}
    assert artifact.names() == ["a.weight", "b.weight", "norm.weight"]
    for name, tensor in artifact.tensors():
        assert tensor.dtype == weights()[name].dtype
        assert torch.equal(tensor, weights()[name])
    assert sorted(lineage.files) == ["config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_base_is_found_beside_one_that_is_damaged(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        with CheckpointWriter(tmp_path / name) as writer:
            writer.text("config.json", "{}")
            writer.add("weight", torch.ones(2))
            writer.finish(msgspec.structs.replace(RECORD, base=Base(name=name, digest=name)))
    (tmp_path / "a" / "lineage.json").write_text("{")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"x")
    assert find_base(tmp_path, "c").path == tmp_path / "c"
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        find_base(tmp_path, "b")
    with pytest.raises(ArtifactError, match="the dense base is not in"):
        find_base(tmp_path, "a")


def test_released_weights_take_no_memory(tmp_path: Path) -> None:
    """As the kernel counts the pages of the file that the process has; a held weight must keep its own."""
    size = 8 << 20
    with CheckpointWriter(tmp_path / "model", packed=False) as writer:
        writer.text("config.json", "{}")
        for number in range(4):
            writer.add(f"{number}.weight", torch.full((size // 4,), float(number)))
        writer.finish(RECORD)
    artifact = Artifact.open(tmp_path / "model")
    held = artifact.tensor("0.weight")
    assert [tensor.sum().item() for _, tensor in artifact.tensors()] == [number * size // 4 for number in range(4)]
    assert held.sum() == 0
    assert size <= resident(artifact.path / "model.safetensors") < 2 * size


def resident(path: Path) -> int:
    """Bytes of the file `path` that this process has in memory."""
    mapped, total = False, 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            mapped = line.endswith(str(path))
        elif mapped and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_weights_replaced_between_two_reads_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model")
    artifact = Artifact.open(tmp_path / "model")
    assert torch.equal(artifact.tensor("a.weight"), weights()["a.weight"])
    write(tmp_path / "model", packed=False)
    with pytest.raises(ArtifactError, match=r"model\.safetensors was replaced while it was read"):
        artifact.tensor("b.weight")


def test_code_that_comes_with_a_model_is_refused_and_not_run(tmp_path: Path) -> None:
    """Even if the record names it: an attacker who plants a file can also write its record."""
    path, ran = tmp_path / "model", tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')"
    with CheckpointWriter(path) as writer:
        config = {
            "model_type": "tiny",
            "auto_map": {"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.X"},
        }
        writer.text("config.json", json.dumps(config))
        writer.text("modeling_x.py", code)
        for name, tensor in weights().items():
            writer.add(name, tensor)
        writer.finish(RECORD)
    with pytest.raises(ArtifactError, match="code that comes with a model is never run"):
        Artifact.open(path)
    assert not ran.exists()


def test_symlinks_are_followed_and_folders_and_pipes_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write(path)
    (path / "config.json").rename(tmp_path / "elsewhere.json")
    (path / "config.json").symlink_to(tmp_path / "elsewhere.json")
    assert Artifact.open(path).config == {"model_type": "tiny"}
    (tmp_path / "elsewhere.json").write_text('{"model_type": "other"}')
    with pytest.raises(ArtifactError, match=r"config\.json was changed"):
        Artifact.open(path)
    (path / "config.json").unlink()
    (path / "config.json").mkdir()
    with pytest.raises(ArtifactError, match=r"config\.json"):
        Artifact.open(path)
    (path / "config.json").rmdir()
    os.mkfifo(path / "config.json")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        Artifact.open(path)


def test_a_file_instead_of_a_directory_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match=r"model\.gguf.* cannot be read: Not a directory"):
        Artifact.open(tmp_path / "model.gguf")


def test_an_unpacked_artifact_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "model", packed=False)
    loaded = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    assert loaded.keys() == weights().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights().items())


def test_tensors_of_64_bytes_and_the_data_are_aligned(tmp_path: Path) -> None:
    write(tmp_path / "model")
    content = (tmp_path / "model" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 64 == 0
    offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    assert all(start % 64 == 0 for start, end in offsets.values() if (end - start) % 64 == 0)


def test_a_written_tensor_of_any_length_is_released(tmp_path: Path) -> None:
    """A matrix without a pattern has values of any number, so most tensors may be of no aligned length."""

    def held() -> int:
        return sum(type(one) is Tensor and one.numel() == 12345 for one in gc.get_objects())

    with CheckpointWriter(tmp_path / "model", packed=False) as writer:
        for number in range(3):
            writer.add(f"{number}.weight", torch.full((12345,), float(number)))
        assert held() == 0
        writer.text("config.json", "{}")
        writer.finish(RECORD)
    artifact = Artifact.open(tmp_path / "model")
    assert [{*tensor.tolist()} for _, tensor in artifact.tensors()] == [{0.0}, {1.0}, {2.0}]


def test_a_changed_file_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors was changed"):
        Artifact.open(tmp_path / "model")


def test_a_missing_and_a_planted_file_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "model")
    planted = tmp_path / "model" / "chat_template.jinja"
    planted.write_text("{{ evil }}")
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja is not named in lineage\.json"):
        Artifact.open(tmp_path / "model")
    planted.unlink()
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config\.json is missing"):
        Artifact.open(tmp_path / "model")


def test_a_directory_without_lineage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no lineage\.json"):
        Artifact.open(tmp_path)
    (tmp_path / "lineage.json").write_text('{"created": 1}')
    with pytest.raises(ArtifactError, match=r"not a lineage record.*\$\.created"):
        Artifact.open(tmp_path)


def test_an_error_leaves_nothing_behind_and_keeps_the_former_artifact(tmp_path: Path) -> None:
    before = write(tmp_path / "model")

    def fail_while_writing() -> None:
        with CheckpointWriter(tmp_path / "model") as writer:
            writer.add("a.weight", torch.ones(64, 64))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail_while_writing()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert Artifact.open(tmp_path / "model").lineage == before


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "one") == write(tmp_path / "two")


def descriptors() -> list[str]:
    """The files that this process has open."""
    return [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]


def test_the_weights_are_opened_once_and_closed_with_the_artifact(tmp_path: Path) -> None:
    write(tmp_path / "model")
    file = str(tmp_path / "model" / "model.safetensors")
    artifact = Artifact.open(tmp_path / "model")
    tensors = dict(artifact.tensors())
    assert descriptors().count(file) == 1
    del artifact
    gc.collect()
    assert file not in descriptors()
    assert torch.equal(tensors["b.weight"], weights()["b.weight"])  # a tensor outlives the artifact


def test_empty_and_scalar_tensors_are_read(tmp_path: Path) -> None:
    written = {"empty": torch.empty(0, 3), "one": torch.tensor(7), "codes": torch.arange(3, dtype=torch.int8)}
    with CheckpointWriter(tmp_path / "model") as writer:
        writer.text("config.json", "{}")
        for name, tensor in written.items():
            writer.add(name, tensor)
        writer.finish(RECORD)
    read = dict(Artifact.open(tmp_path / "model").tensors())
    assert {name: (t.dtype, t.shape) for name, t in read.items()} == {n: (t.dtype, t.shape) for n, t in written.items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in written.items())


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the name of each file that is hashed from now on."""
    names: list[str] = []
    original = hashlib.file_digest

    def watched(file: IO[bytes], name: str) -> object:
        names.append(Path(file.name).name)
        return original(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", watched)
    return names


def test_a_file_is_hashed_again_only_where_it_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests, names = FileDigests(), hashed(monkeypatch)
    with CheckpointWriter(tmp_path / "made", digests=digests) as writer:
        writer.text("config.json", "{}")
        writer.add("a.weight", weights()["a.weight"])
        writer.finish(RECORD)
    Artifact.open(tmp_path / "made", digests=digests)
    (tmp_path / "made").rename(tmp_path / "model")
    Artifact.open(tmp_path / "model", digests=digests)
    assert sorted(names) == ["config.json", "model.safetensors"]
    path = tmp_path / "model" / "model.safetensors"
    content, before = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    with path.open("r+b") as file:  # in place, of the same size, and with its old times
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactError, match=r"model\.safetensors was changed"):
        Artifact.open(tmp_path / "model", digests=digests)
    content[-1] ^= 1
    (tmp_path / "other").write_bytes(content)
    (tmp_path / "other").rename(path)
    Artifact.open(tmp_path / "model", digests=digests)  # another file of the same content, read again
    assert names.count("model.safetensors") == 3
