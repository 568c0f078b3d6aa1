"""Writes weights as one `model.safetensors`, or as shards with an index; one tensor is in memory at a time."""

import json
from pathlib import Path

from torch import Tensor

from server.artifact.checkpoint.lineage import WEIGHTS
from server.artifact.checkpoint.safetensors_file import SafetensorsWriter

INDEX = "model.safetensors.index.json"
METADATA = {"format": "pt"}


class Shards:
    """Writes tensors to files of at most `limit` data bytes in `folder`; a larger tensor gets a file of its own."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._shards: list[list[str]] = []
        self._file: SafetensorsWriter | None = None
        self._size = 0
        self.bytes = 0
        """Data bytes of all tensors so far."""

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor; names must be unique."""
        size = tensor.numel() * tensor.element_size()
        if self._file is None or (self._size and self._size + size > self._limit):
            self._next()
        assert self._file is not None
        self._file.add(name, tensor)
        self._shards[-1].append(name)
        self._size += size
        self.bytes += size

    def close(self) -> None:
        """Name the files, and write the index if there are several."""
        self._end()
        count = len(self._shards)
        if count == 1:
            self._path(1).rename(self._folder / WEIGHTS)
            return
        names: dict[str, str] = {}
        for number, tensors in enumerate(self._shards, 1):
            name = f"model-{number:05}-of-{count:05}.safetensors"
            self._path(number).rename(self._folder / name)
            names |= dict.fromkeys(tensors, name)
        index = {"metadata": {"total_size": self.bytes}, "weight_map": dict(sorted(names.items()))}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _next(self) -> None:
        """Start another file."""
        self._end()
        self._shards.append([])
        self._size = 0
        self._file = SafetensorsWriter(self._path(len(self._shards)))

    def _end(self) -> None:
        if self._file is not None:
            self._file.close(METADATA)

    def _path(self, number: int) -> Path:
        """The path of a shard until their number is known."""
        return self._folder / f"shard-{number}"
