"""Writes one safetensors file as a stream: memory is one tensor, whatever the size of the model.

Data starts at a multiple of 64 bytes and so does each tensor whose length allows it, so that a mapped file can be
read with aligned 64-byte loads; the library's own writer aligns to 8 only.
"""

import json
import shutil
from pathlib import Path
from typing import Any

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
    """Collects tensors in data files beside `path`; `close` writes header and data to `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._aligned = _Data(path.with_name(path.name + ".data"))
        self._rest = _Data(path.with_name(path.name + ".rest"))
        """Tensors whose length is no multiple of the alignment: last in the file, where they disturb nobody."""

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor; names must be unique."""
        assert name not in self._aligned.entries | self._rest.entries, f"{name} was added twice"
        whole = tensor.numel() * tensor.element_size() % ALIGNMENT == 0
        (self._aligned if whole else self._rest).add(name, tensor)

    def close(self, metadata: dict[str, str]) -> None:
        """Write the file and remove the data files."""
        size = self._aligned.file.tell()
        self.abandon()
        entries = self._aligned.shifted(0) | self._rest.shifted(size)
        header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        with self.path.open("wb") as target:
            target.write(len(header).to_bytes(8, "little") + header)
            for data in (self._aligned, self._rest):
                with data.path.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
        self.clear()

    def abandon(self) -> None:
        """Close without writing the file."""
        try:
            self._aligned.file.close()
        finally:
            self._rest.file.close()

    def clear(self) -> None:
        """Remove the data files, where they still are."""
        for data in (self._aligned, self._rest):
            data.path.unlink(missing_ok=True)


class _Data:
    """Tensors one after another in a file, and where each lies there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.entries: dict[str, dict[str, Any]] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor."""
        start = self.file.tell()
        if tensor.numel():
            self.file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self.entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, self.file.tell()],
        }

    def shifted(self, by: int) -> dict[str, dict[str, Any]]:
        """The entries in a file where this data begins `by` bytes after the first."""
        return {
            name: entry | {"data_offsets": [by + offset for offset in entry["data_offsets"]]}
            for name, entry in self.entries.items()
        }
