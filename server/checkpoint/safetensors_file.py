"""Writes one safetensors file as a stream: memory is one tensor, whatever the size of the model.

Data starts at a multiple of 64 bytes and so does each tensor whose length allows it, so that a mapped file can be
read with aligned 64-byte loads; the library's own writer aligns to 8 only.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

ALIGNMENT = 64
_DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class SafetensorsFile:
    """Collects tensors in a data file beside `path`; `close` writes header and data to `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data_path = path.with_name(path.name + ".data")
        self._data = self._data_path.open("wb")
        self._entries: dict[str, object] = {}
        self._unaligned: list[tuple[str, Tensor]] = []  # small ones; written last, where they disturb nobody

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor; names must be unique."""
        if tensor.numel() * tensor.element_size() % ALIGNMENT:
            self._unaligned.append((name, tensor.clone()))
        else:
            self._write(name, tensor)

    def close(self, metadata: dict[str, str]) -> None:
        """Write the file, flushed to the disk, and remove the data file."""
        for name, tensor in self._unaligned:
            self._write(name, tensor)
        self._data.close()
        header = json.dumps({"__metadata__": metadata, **self._entries}, separators=(",", ":")).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        with self.path.open("wb") as target, self._data_path.open("rb") as data:
            target.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(data, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        self._data_path.unlink()

    def abandon(self) -> None:
        """Close without writing the file."""
        self._data.close()

    def _write(self, name: str, tensor: Tensor) -> None:
        assert name not in self._entries, f"{name} was added twice"
        start = self._data.tell()
        if tensor.numel():
            self._data.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self._entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, self._data.tell()],
        }
