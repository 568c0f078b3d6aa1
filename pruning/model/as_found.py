"""A base model as its publisher stores it: the bytes of its weights, before they are imported at 16 bits."""

from pathlib import Path

from gguf import GGUFReader

WEIGHTS = ("*.safetensors", "*.bin")
"""The weights files of a directory; the first kind that it has counts."""


def bytes_as_found(path: Path) -> int:
    """Bytes of the tensors of a GGUF file, or of the weights files in a directory."""
    if path.is_file():
        return sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
    for pattern in WEIGHTS:
        if files := list(path.glob(pattern)):
            return sum(file.stat().st_size for file in files)
    return 0
