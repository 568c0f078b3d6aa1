"""The scan of a GGUF header, against the format's own library."""

from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter

from pruning.errors import ModelRefused
from pruning.model.gguf_scan import scan


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with every kind of value that writers use."""
    import numpy

    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_rope_freq_base(1e4)
    writer.add_bool("a.flag", True)
    writer.add_int32("a.negative", -7)
    writer.add_token_list(["a", "ä", ""])
    writer.add_token_scores([0.5, 1.5, -1.0])
    writer.add_array("a.nested", [[1, 2], [3]])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("one.weight", numpy.zeros((3, 64), numpy.float32))
    writer.add_tensor("two.weight", numpy.zeros(5, numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_scan_is_what_the_library_reads(file: Path) -> None:
    reader, found = GGUFReader(file), scan(file)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "a.nested":  # which the library flattens
            value = field.contents()
            assert found.fields[name] == (len(value) if isinstance(value, list) else value)
    assert found.fields["a.nested"] == 2
    assert found.shapes == {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert found.parameters == 3 * 64 + 5


@pytest.mark.parametrize("length", [3, 4, 8, 20, 60, 200])
def test_a_file_that_ends_early_is_refused(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelRefused, match=r"tiny\.gguf"):
        scan(file)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelRefused, match="is no GGUF file"):
        scan(path)
