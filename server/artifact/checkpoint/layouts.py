"""The layouts of a weight matrix on disk: dense, balanced or unstructured sparse, each of values or integer codes.

The safetensors file carries the layout of each tensor in its metadata.
"""

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

RUN = 64
"""Columns that share one mask: a 64-bit word, and the width of the widest registers at 8 bits."""

FORMAT_VERSION = 2
"""The newest version that is read. 2 added unstructured weights; a file without them is written as 1."""

METADATA_KEY = "secateur"

Count = Annotated[int, Meta(ge=1)]
Keep = Annotated[int, Meta(ge=1, le=RUN)]
Group = Literal[32, 64, 128]


class Part(NamedTuple):
    """One of the tensors [rows, columns] that a weight is stored as, `NAME.PART`."""

    columns: int
    dtypes: tuple[str, ...]
    """The allowed dtypes, in safetensors' names."""
    rows: int | None = None
    """The number of rows; None for one per row of the weight."""


class Dense(msgspec.Struct, frozen=True, tag="dense", tag_field="layout"):
    """Stored as an ordinary tensor."""


class Balanced(msgspec.Struct, frozen=True, tag="balanced", tag_field="layout"):
    """Exactly `keep` values and a 64-bit mask for every run of 64 columns, so the stride is fixed.

    2:4 and 32:64 are both this layout with keep = 32. The tensor `NAME` is stored as `NAME.values`
    [rows, runs * keep] and `NAME.mask` [rows, runs]; bit i of a mask is column i of its run.
    """

    keep: Keep
    columns: Count

    @property
    def parts(self) -> dict[str, Part]:
        """The stored tensors, by the suffix of their name."""
        runs = -(-self.columns // RUN)
        return {"values": Part(runs * self.keep, ("BF16", "F16", "F32")), "mask": Part(runs, ("I64",))}


class Unstructured(msgspec.Struct, frozen=True, tag="unstructured", tag_field="layout"):
    """Only the `count` nonzero values, row by row.

    `NAME.values` is [1, count]; `NAME.mask` [rows, runs] has bit i for column i of its run; `NAME.offsets` [rows, 1]
    is the index of each row's first value, so that rows can be read in parallel.
    """

    count: Count
    columns: Count

    @property
    def parts(self) -> dict[str, Part]:
        """The stored tensors, by the suffix of their name."""
        return _unstructured(self.count, self.columns, ("BF16", "F16", "F32"))


class Quantised(msgspec.Struct, frozen=True, tag="quantised", tag_field="layout"):
    """Symmetric integer codes: weight = code * scale, one float16 scale for each row and `group` columns.

    `NAME.scales` is [rows, ceil(columns / group)]. `NAME.values` holds all codes; with `keep`, those selected by
    `NAME.mask`, as in the balanced layout; with `count` (8 bits only), those of the unstructured layout. Codes are
    two's complement. At 4 bits a byte holds two, the lower column in its low half, and each row (with a mask, each run
    of 64 columns) starts a new byte.
    """

    bits: Literal[4, 8]
    group: Group
    columns: Count
    keep: Keep | None = None
    count: Count | None = None
    transposed: bool = False
    """The weight itself is [columns, rows], as in GPT-2."""

    @property
    def parts(self) -> dict[str, Part]:
        """The stored tensors, by the suffix of their name."""
        runs = -(-self.columns // RUN)
        if self.count is not None:
            return _unstructured(self.count, self.columns, ("I8",)) | {"scales": self._scales}
        strides, codes = (1, self.columns) if self.keep is None else (runs, self.keep)
        values = Part(strides * (-(-codes * self.bits // 8)), ("I8" if self.bits == 8 else "U8",))
        parts = {"values": values, "scales": self._scales}
        return parts if self.keep is None else parts | {"mask": Part(runs, ("I64",))}

    @property
    def _scales(self) -> Part:
        return Part(-(-self.columns // self.group), ("F16",))

    def __post_init__(self) -> None:
        if self.count is not None and (self.keep is not None or self.bits != 8):
            raise ValueError("count goes with 8 bits and without keep")


def _unstructured(count: int, columns: int, dtypes: tuple[str, ...]) -> dict[str, Part]:
    """The stored tensors of a matrix with `count` nonzero values."""
    runs = -(-columns // RUN)
    return {"values": Part(count, dtypes, rows=1), "mask": Part(runs, ("I64",)), "offsets": Part(1, ("I64",))}


def size_of(layout: "Packed", rows: int) -> int:
    """Bytes of all parts of a weight with `rows` rows, floating-point values counted as 2 bytes."""
    size = {"I8": 1, "U8": 1, "F16": 2, "BF16": 2, "I64": 8}
    return sum((part.rows or rows) * part.columns * size[part.dtypes[0]] for part in layout.parts.values())


Packed = Balanced | Unstructured | Quantised
Layout = Dense | Packed


class LayoutTable(msgspec.Struct, frozen=True):
    """The layouts in the metadata of `model.safetensors`; a tensor without an entry is dense."""

    version: Annotated[int, Meta(ge=1, le=FORMAT_VERSION)]
    layouts: dict[str, Packed]

    @classmethod
    def of(cls, layouts: dict[str, Packed]) -> "LayoutTable":
        """The table of `layouts`, in the oldest version that supports them."""
        new = any(isinstance(layout, Unstructured) or getattr(layout, "count", None) for layout in layouts.values())
        return cls(version=2 if new else 1, layouts=layouts)

    def metadata(self) -> dict[str, str]:
        """The safetensors metadata that carries this table."""
        return {"format": "pt", METADATA_KEY: msgspec.json.encode(self).decode()}

    @classmethod
    def read(cls, metadata: dict[str, Any] | None) -> "LayoutTable":
        """The table in `metadata`; empty for an ordinary checkpoint, whose tensors are all dense.

        Raises msgspec.DecodeError for a malformed table, and ValueError naming a tensor with a malformed layout.
        """
        text = (metadata or {}).get(METADATA_KEY)
        if not text:
            return cls(version=FORMAT_VERSION, layouts={})
        raw = msgspec.json.decode(text, type=_RawTable)
        return cls(version=raw.version, layouts={name: _layout(name, values) for name, values in raw.layouts.items()})


class _RawTable(msgspec.Struct):
    """A table whose layouts are decoded one by one, so that an error can name the tensor."""

    version: Annotated[int, Meta(ge=1, le=FORMAT_VERSION)]
    layouts: dict[str, msgspec.Raw]


def _layout(name: str, values: msgspec.Raw) -> Packed:
    """The layout of the tensor `name`."""
    try:
        layout: Packed = msgspec.json.decode(values, type=Packed)
    except msgspec.DecodeError as error:
        raise ValueError(f"the layout of {name} is malformed: {error}") from None
    return layout
