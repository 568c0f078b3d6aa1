"""Writes an artifact atomically: a reader sees all of it or nothing.

Tensors are streamed, so one is in memory at a time.
"""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from torch import Tensor

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.layouts import Dense, Layout, LayoutTable, Packed, Unstructured
from server.artifact.checkpoint.packing import choose_layout, pack, pack_unstructured
from server.artifact.checkpoint.quantised import pack_quantised, with_zeros
from server.artifact.checkpoint.safetensors_file import SafetensorsWriter
from server.storage.digests import FileDigests
from server.storage.files import publish, sync_folder


class CheckpointWriter:
    """A context manager that writes a new artifact at `path`; leaving it without `finish` leaves nothing behind.

    With `packed`, each matrix is stored in its smallest layout; otherwise everything is dense, an ordinary Hugging Face
    checkpoint. With `zeros`, quantised matrices are packed with their zeros, as in software without sparsity. An
    existing artifact at `path` is replaced on `finish`. `digests` remembers the digests of the files.
    """

    def __init__(
        self, path: Path, *, packed: bool = True, zeros: bool = False, digests: FileDigests | None = None
    ) -> None:
        self.path = path
        self._digests = digests or FileDigests()
        self.packed = packed
        self.zeros = zeros
        self._partial = path.with_name(path.name + ".partial")
        self._layouts: dict[str, Packed] = {}

    def __enter__(self) -> Self:
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._weights = SafetensorsWriter(self._partial / record.WEIGHTS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._weights.abandon()  # closing flushes buffers, which fails on a full disk
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, name: str, tensor: Tensor, scales: Tensor | None = None) -> None:
        """Append a weight under its Hugging Face name, in any order.

        With `scales` the weight is quantised, and its codes are stored: its values must be code * scale, with `scales`
        [rows, groups], or code * scale + minimum, with both in `scales` [rows, groups, 2].
        """
        layout, parts = _parts(tensor, scales, self.zeros) if self.packed else (Dense(), {})
        if isinstance(layout, Dense):
            self._weights.add(name, tensor)
            return
        for part, stored in parts.items():
            self._weights.add(f"{name}.{part}", stored)
        self._layouts[name] = layout

    def copy(self, source: Path) -> None:
        """Copy a file, such as the tokenizer, under its own name."""
        shutil.copyfile(source, self._partial / source.name)

    def text(self, name: str, content: str) -> None:
        """Write a small text file, such as config.json."""
        (self._partial / name).write_text(content, encoding="utf-8")

    def finish(self, lineage: record.Lineage) -> record.Lineage:
        """Close the weights, record the digests of all files and publish; returns the record as written."""
        self._weights.close(LayoutTable.of(self._layouts).metadata())
        files = {path.name: record.digest_of(path, self._digests) for path in sorted(self._partial.iterdir())}
        complete = msgspec.structs.replace(lineage, files=files)
        (self._partial / record.FILE).write_bytes(record.encoded(complete))
        sync_folder(self._partial)
        publish(self._partial, self.path)
        return complete


def _parts(tensor: Tensor, scales: Tensor | None, zeros: bool) -> tuple[Layout, dict[str, Tensor]]:
    """The smallest layout of `tensor`, or with `zeros` the one that stores zeros too, and its parts."""
    if scales is not None:
        quantised, parts = pack_quantised(tensor, scales)
        return with_zeros(parts, quantised) if zeros else (quantised, parts)
    layout = Dense() if zeros else choose_layout(tensor)
    if isinstance(layout, Dense):
        return layout, {}
    if isinstance(layout, Unstructured):
        return layout, pack_unstructured(tensor)
    values, mask = pack(tensor, layout.keep)
    return layout, {"values": values, "mask": mask}
