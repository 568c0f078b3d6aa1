"""Opens an artifact, verifies every file against its lineage, and reads its weights one at a time.

Reads safetensors only: nothing in an artifact is ever executed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
from safetensors import SafetensorError
from torch import Tensor

from server.artifact.checkpoint import chain
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.digest import weights_digest
from server.artifact.checkpoint.layouts import Dense, Layout, LayoutTable, Packed, Quantised, Unstructured
from server.artifact.checkpoint.lineage import WEIGHTS, Lineage
from server.artifact.checkpoint.packing import unpack, unpack_unstructured
from server.artifact.checkpoint.quantised import grid_of, unpack_codes, unpack_quantised
from server.artifact.checkpoint.safetensors_file import SafetensorsReader, identity
from server.errors import ArtifactError
from server.storage.digests import FileDigests


class Artifact:
    """A verified artifact; weights are mapped from the file and unmapped once released."""

    def __init__(self, path: Path, lineage: record.Lineage, config: dict[str, Any]) -> None:
        self.path = path
        self.lineage = lineage
        self.config = config
        try:
            self._file = SafetensorsReader(path / WEIGHTS)
            self._layouts = LayoutTable.read(self._file.metadata).layouts
        except (OSError, SafetensorError, ValueError) as error:
            raise ArtifactError(f"{path / WEIGHTS} cannot be read: {error}") from None
        for name, layout in self._layouts.items():
            self._check(name, layout)

    @classmethod
    def open(cls, path: Path, *, digests: FileDigests | None = None) -> Self:
        """Open the artifact in the directory `path`; raises ArtifactError naming the file that differs from the record.

        Files that `digests` knows are not read again.
        """
        lineage = record.read(path)
        if lineage.is_knowledge:
            raise ArtifactError(f"{path} is a knowledge and no model: name it as `knowledge` of a skill")
        if form := chain.exported(lineage):
            raise ArtifactError(f"{path} is an export for other software ({form}): name the artifact it was made from")
        record.verify(path, lineage, digests)
        chain.check(path, lineage)
        try:
            config = msgspec.json.decode((path / "config.json").read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise ArtifactError(f"{path / 'config.json'} cannot be read: {error}") from None
        if "auto_map" in config:
            raise ArtifactError(f"{path / 'config.json'} has an `auto_map`: code that comes with a model is never run")
        return cls(path, lineage, config)

    @property
    def size(self) -> int:
        """Bytes of the weights file."""
        return (self.path / WEIGHTS).stat().st_size

    def names(self) -> list[str]:
        """The Hugging Face names of all weights."""
        parts = {f"{name}.{part}": name for name, layout in self._layouts.items() for part in layout.parts}
        return sorted({parts.get(key, key) for key in self._file.entries})

    def layout(self, name: str) -> Layout:
        """The layout of the weight `name`."""
        return self._layouts.get(name, Dense())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the weight `name`, without reading it."""
        layout = self.layout(name)
        if isinstance(layout, Dense):
            return self._file.entries[name].shape
        part = next(part for part, expected in layout.parts.items() if expected.rows is None)
        rows = self._file.entries[f"{name}.{part}"].shape[0]
        turned = isinstance(layout, Quantised) and layout.transposed
        return (layout.columns, rows) if turned else (rows, layout.columns)

    def parts(self, name: str) -> dict[str, Tensor]:
        """The stored tensors of the weight `name`, mapped from the file; only `values` if it is dense."""
        layout = self.layout(name)
        if isinstance(layout, Dense):
            return {"values": self._stored(name)}
        return {part: self._stored(f"{name}.{part}") for part in layout.parts}

    def tensor(self, name: str) -> Tensor:
        """The weight `name`, dense, in its stored dtype."""
        layout = self.layout(name)
        parts = self.parts(name)
        if isinstance(layout, Dense):
            return parts["values"]
        try:
            if isinstance(layout, Quantised):
                return unpack_quantised(parts, layout)
            if isinstance(layout, Unstructured):
                return unpack_unstructured(parts, layout.columns)
            return unpack(parts["values"], parts["mask"], layout.columns)
        except ValueError as error:
            raise self._refusal(name, str(error)) from None

    def scales(self, name: str) -> Tensor | None:
        """The float16 grid of a quantised weight; None for any other.

        It is scales [rows, groups], or [rows, groups, 2] of scales and minimums; [groups, rows, ...] if transposed.
        """
        layout = self.layout(name)
        if not isinstance(layout, Quantised):
            return None
        grid = grid_of(
            {part: self._stored(f"{name}.{part}") for part in layout.parts if part in ("scales", "minimums")}
        )
        return grid.transpose(0, 1) if layout.transposed else grid

    def codes(self, name: str) -> Tensor:
        """The int8 codes of a quantised weight, in its shape, or transposed if it is stored transposed."""
        layout = self.layout(name)
        assert isinstance(layout, Quantised), f"{name} has no codes"
        try:
            return unpack_codes(self.parts(name), layout)
        except ValueError as error:
            raise self._refusal(name, str(error)) from None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight with its name, one at a time."""
        for name in self.names():
            yield name, self.tensor(name)

    def check_last_link(self) -> None:
        """Raise ArtifactError unless the weights match the digest of the lineage's last step; reads all weights."""
        steps = chain.links(self.lineage)
        if steps and steps[-1].digest and weights_digest(self) != steps[-1].digest:
            made = f"what the last step of {record.FILE} made ({steps[-1].technique})"
            raise ArtifactError(f"{self.path / WEIGHTS} does not hold {made}; copy the artifact again")

    def _stored(self, key: str) -> Tensor:
        """The tensor `key` of the file; raises ArtifactError if another file lies at its path by now."""
        path = self.path / WEIGHTS
        try:
            if identity(path.stat()) == self._file.identity:
                return self._file.tensor(key)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from None
        raise ArtifactError(f"{path} was replaced while it was read: start again with what is there now")

    def _check(self, name: str, layout: Packed) -> None:
        """Raise ArtifactError unless the parts of `name` have the shapes and dtypes of its layout."""
        rows = None
        for part, expected in layout.parts.items():
            if (stored := self._file.entries.get(f"{name}.{part}")) is None:
                raise self._refusal(name, f"{name}.{part} is missing")
            shape, dtype = list(stored.shape), stored.dtype
            if rows is None and expected.rows is None:
                rows = next(iter(shape), 0)
            wanted_shape = [expected.rows or rows, expected.columns]
            if shape != wanted_shape or dtype not in expected.dtypes:
                wanted = f"{' or '.join(expected.dtypes)} {wanted_shape}"
                raise self._refusal(name, f"{name}.{part} is {dtype} {shape}, where its layout needs {wanted}")

    def _refusal(self, name: str, what: str) -> ArtifactError:
        """The error for a weight that contradicts its layout."""
        return ArtifactError(f"{self.path / WEIGHTS}: the weight {name} cannot be read: {what}; copy or make it again")


def verified_record(path: Path, digests: FileDigests | None = None) -> Lineage:
    """The record of the model, knowledge or export in `path`; raises ArtifactError naming what does not match.

    The weights of a model are also compared with its last step; those of an export only other software reads, and a
    knowledge has none.
    Files that `digests` knows are not read again for their digests.
    """
    lineage = record.read(path)
    if lineage.is_knowledge or chain.exported(lineage):
        record.verify(path, lineage, digests)
        chain.check(path, lineage)
    else:
        Artifact.open(path, digests=digests).check_last_link()
    return lineage


def find_base(cache: Path, digest: str) -> Artifact:
    """The imported base with this digest in `cache`; raises ArtifactError if there is none."""
    for file in sorted(cache.glob(f"*/{record.FILE}")):
        try:
            found = record.read(file.parent).base.digest
        except ArtifactError:  # another, damaged base
            continue
        if found == digest:
            return Artifact.open(file.parent)
    raise ArtifactError(f"the dense base is not in {cache}: run `secateur prune` again, or name it with --base-cache")
