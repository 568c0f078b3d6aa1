"""Scans the header of a GGUF file in milliseconds: settings, chat template and shapes, without a tokenizer or weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The library `gguf` takes seconds for the
vocabulary alone, so it is left to the import.
"""

import struct
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

from pruning.errors import ModelRefused

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The format of each type of scalar, by its number in the file."""


class Scan(NamedTuple):
    """The header of a GGUF file."""

    fields: dict[str, Any]
    """Metadata by key; an array is represented by its length."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each tensor."""

    @property
    def parameters(self) -> int:
        """Number of weights of the model."""
        return sum(map(prod, self.shapes.values()))


def scan(path: Path) -> Scan:
    """The header of the GGUF file `path`; raises ModelRefused where it is damaged, OSError where it cannot be read."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelRefused(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            try:
                return _header(_Cursor(content))
            except (struct.error, KeyError, ValueError, OverflowError) as error:
                raise ModelRefused(f"{path} has a damaged header ({error}): download the file again") from error


class _Cursor:
    """Reads little-endian values from a mapped file, one after another."""

    def __init__(self, content: mmap) -> None:
        self._content, self._at = content, len(MAGIC)

    def scalar(self, form: str) -> Any:
        """The next value, in a format of `struct`."""
        (value,) = struct.unpack_from(f"<{form}", self._content, self._at)
        self._at += struct.calcsize(f"<{form}")
        return value

    def skip(self, count: int) -> None:
        """Pass over `count` bytes; raises ValueError at the end of the file."""
        if self._at + count > len(self._content):
            raise ValueError("the file ends within it")
        self._at += count

    def text(self) -> str:
        """The next string."""
        length = self.scalar("Q")
        self.skip(length)
        return self._content[self._at - length : self._at].decode(errors="replace")

    def value(self, kind: int) -> Any:
        """The next value of type `kind`; of an array, its length."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in SCALARS:
            self.skip(count * struct.calcsize(f"<{SCALARS[inner]}"))
        else:
            for _ in range(count):
                self.skip(self.scalar("Q")) if inner == STRING else self.value(inner)
        return count


def _header(cursor: _Cursor) -> Scan:
    """Metadata and shapes, from the version number on."""
    version, tensors, keys = cursor.scalar("I"), cursor.scalar("Q"), cursor.scalar("Q")
    if version not in (2, 3):
        raise ValueError(f"version {version} is unknown")
    fields = {}
    for _ in range(keys):
        key = cursor.text()
        fields[key] = cursor.value(cursor.scalar("I"))
    shapes = {}
    for _ in range(tensors):
        name = cursor.text()
        shapes[name] = tuple(cursor.scalar("Q") for _ in range(cursor.scalar("I")))
        cursor.skip(4 + 8)  # type and offset
    return Scan(fields, shapes)
