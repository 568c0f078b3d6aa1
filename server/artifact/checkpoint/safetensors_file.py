"""Writes and reads one safetensors file with one tensor in memory, whatever the size of the model.

Data starts at a multiple of 64 bytes and so does each tensor whose length allows it, so that a mapped file can be
read with aligned 64-byte loads; the library's own writer aligns to 8 only.
"""

import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

ALIGNMENT = 64
DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""safetensors' name of each dtype that is written."""
KINDS = {name: dtype for dtype, name in DTYPES.items()}


class SafetensorsWriter:
    """Collects tensors in data files beside `path`; `close` writes header and data to `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._aligned = _Data(path.with_name(path.name + ".data"))
        self._rest = _Data(path.with_name(path.name + ".rest"))
        """Tensors whose length is no multiple of the alignment: last in the file, so that they shift no other."""

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
        """Close the data files without writing `path`; `clear` then removes them."""
        try:
            self._aligned.file.close()
        finally:
            self._rest.file.close()

    def clear(self) -> None:
        """Remove the temporary data files, if any are left."""
        for data in (self._aligned, self._rest):
            data.path.unlink(missing_ok=True)


class _Data:
    """A temporary file of concatenated tensors, and the header entry of each."""

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
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, self.file.tell()],
        }

    def shifted(self, by: int) -> dict[str, dict[str, Any]]:
        """The header entries, with every data offset increased by `by` bytes."""
        return {
            name: entry | {"data_offsets": [by + offset for offset in entry["data_offsets"]]}
            for name, entry in self.entries.items()
        }


class Entry(NamedTuple):
    """A tensor in the header of a file."""

    dtype: str
    """In safetensors' names, such as `BF16`."""
    shape: tuple[int, ...]
    start: int
    """Byte of the file at which its data begins."""
    end: int


class SafetensorsReader:
    """The tensors of a file, which is opened once; each is mapped on its own and takes no memory once it is let go.

    One mapping for all tensors would keep every page that was ever read. Raises OSError, SafetensorError or ValueError
    if `path` is not a safetensors file of the dtypes that are written here.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        self.identity = identity(os.fstat(descriptor))
        self._name = f"/proc/self/fd/{descriptor}"
        """Opens this very file, whatever lies at `path` later."""
        with safe_open(self._name, framework="pt") as checked:  # checks the header against the file's size
            self.metadata: dict[str, str] = checked.metadata() or {}
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        header = json.loads(os.pread(descriptor, length, 8))
        header.pop("__metadata__", None)
        self.entries = {name: _entry(values, 8 + length) for name, values in header.items()}

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`."""
        dtype, shape, start, end = self.entries[name]
        kind = KINDS[dtype]
        if start == end:
            return torch.empty(shape, dtype=kind)
        data = torch.UntypedStorage.from_file(self._name, False, end)[start:end]
        return torch.asarray(data, dtype=torch.uint8).view(kind).reshape(shape)


def identity(status: os.stat_result) -> tuple[int, int]:
    """Device and inode, which show whether a path still names the same file."""
    return status.st_dev, status.st_ino


def _entry(values: dict[str, Any], data: int) -> Entry:
    if values["dtype"] not in KINDS:
        raise ValueError(f"a tensor is {values['dtype']}, which is none of {', '.join(KINDS)}")
    start, end = values["data_offsets"]
    return Entry(values["dtype"], tuple(values["shape"]), data + start, data + end)
