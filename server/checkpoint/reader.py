"""Opens an artifact, refuses it if any file differs from its lineage, and hands out its weights one at a time.

Reads safetensors only: nothing in an artifact is ever executed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from server.checkpoint import lineage as record
from server.checkpoint.layouts import Balanced, Dense, Layout, LayoutTable
from server.checkpoint.packing import unpack
from server.checkpoint.writer import WEIGHTS
from server.errors import ArtifactError


class Artifact:
    """A verified artifact; the weights stay in the mapped file until they are asked for."""

    def __init__(self, path: Path, lineage: record.Lineage, config: dict[str, Any]) -> None:
        self.path = path
        self.lineage = lineage
        self.config = config
        try:
            self._file = _mapped(path / WEIGHTS)
            self._layouts = LayoutTable.read(self._file.metadata()).layouts
        except (OSError, SafetensorError, msgspec.DecodeError) as error:
            raise ArtifactError(f"{path / WEIGHTS} cannot be read: {error}") from None

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Self:
        """Open the artifact in the directory `path`; raises ArtifactError naming the file that is wrong."""
        lineage = record.read(path)
        if verify:
            record.verify(path, lineage)
        try:
            config = msgspec.json.decode((path / "config.json").read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise ArtifactError(f"{path / 'config.json'} cannot be read: {error}") from None
        return cls(path, lineage, config)

    @property
    def size(self) -> int:
        """Bytes of the weights file."""
        return (self.path / WEIGHTS).stat().st_size

    def names(self) -> list[str]:
        """The Hugging Face names of all weights."""
        parts = {f"{name}.{part}": name for name in self._layouts for part in ("values", "mask")}
        return sorted({parts.get(key, key) for key in self._file.keys()})  # noqa: SIM118

    def layout(self, name: str) -> Layout:
        """How the weight `name` is stored."""
        return self._layouts.get(name, Dense())

    def tensor(self, name: str) -> Tensor:
        """The weight `name`, dense, in the dtype it is stored in."""
        layout = self.layout(name)
        if isinstance(layout, Balanced):
            values, mask = self._file.get_tensor(f"{name}.values"), self._file.get_tensor(f"{name}.mask")
            return unpack(values, mask, layout.columns)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight with its name, one in memory at a time."""
        for name in self.names():
            yield name, self.tensor(name)


def _mapped(path: Path) -> Any:
    """Map a safetensors file; `Any`, since the library has no annotations."""
    return safe_open(path, framework="pt")
