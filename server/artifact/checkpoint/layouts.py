"""The layouts of a weight matrix on disk: dense, balanced or unstructured sparse, each of values or integer codes.

The safetensors file carries the layout of each tensor in its metadata.
"""

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

RUN = 64
"""Columns that share one mask: a 64-bit word, and the width of the widest registers at 8 bits."""

FORMAT_VERSION = 3
"""The newest version that is read. 2 added unstructured weights; 3 codes of 3, 5 and 6 bits, minimums and levels. A
file is written in the oldest version that knows its layouts."""

METADATA_KEY = "secateur"

Count = Annotated[int, Meta(ge=1)]
Keep = Annotated[int, Meta(ge=1, le=RUN)]
Group = Literal[32, 64, 128]
Bits = Literal[3, 4, 5, 6, 8]
Scheme = Literal["symmetric", "asymmetric"]
Level = Annotated[int, Meta(ge=-128, le=127)]


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


class Quantised(msgspec.Struct, frozen=True, tag="quantised", tag_field="layout", omit_defaults=True):
    """Integer codes: weight = code * scale, or with `asymmetric` code * scale + minimum, for each row and `group`.

    `NAME.scales` and `NAME.minimums` are [rows, ceil(columns / group)], float16. `NAME.values` holds all codes; with
    `keep`, those selected by `NAME.mask`, as in the balanced layout; with `count` (8 bits only), those of the
    unstructured layout. Codes are two's complement; asymmetric ones, and indices of `levels`, are unsigned. Below 8
    bits the codes of a row (with a mask, of each run of 64 columns) are a stream of bits that starts a new byte, lowest
    bit and lowest column first: at 4 bits a byte holds two codes, the lower column in its low half.
    """

    bits: Bits
    group: Group
    columns: Count
    keep: Keep | None = None
    count: Count | None = None
    transposed: bool = False
    """The weight itself is [columns, rows], as in GPT-2."""
    asymmetric: bool = False
    """Each group has a minimum beside its scale."""
    levels: tuple[Level, ...] | None = None
    """The table of 2^bits integers that a stored code is an index of, in place of the code itself (3 or 4 bits)."""

    @property
    def parts(self) -> dict[str, Part]:
        """The stored tensors, by the suffix of their name."""
        runs = -(-self.columns // RUN)
        if self.count is not None:
            return _unstructured(self.count, self.columns, ("I8",)) | {"scales": self._scales}
        strides, codes = (1, self.columns) if self.keep is None else (runs, self.keep)
        values = Part(strides * (-(-codes * self.bits // 8)), ("I8" if self.bits == 8 else "U8",))
        parts = {"values": values, "scales": self._scales}
        parts |= {"minimums": self._scales} if self.asymmetric else {}
        return parts if self.keep is None else parts | {"mask": Part(runs, ("I64",))}

    @property
    def kind(self) -> str:
        """The kind of codes in words, such as "asymmetric codes of 4 bits"."""
        if self.levels:
            return f"codes of {self.bits} bits in a table"
        return f"{'asymmetric ' if self.asymmetric else ''}codes of {self.bits} bits"

    @property
    def version(self) -> int:
        """The oldest version of the format that knows this layout."""
        if self.bits in (3, 5, 6) or self.asymmetric or self.levels:
            return 3
        return 1 if self.count is None else 2

    @property
    def _scales(self) -> Part:
        return Part(-(-self.columns // self.group), ("F16",))

    def __post_init__(self) -> None:
        if self.count is not None and (self.keep is not None or self.bits != 8):
            raise ValueError("count goes with 8 bits and without keep")
        if self.asymmetric and (self.keep or self.count or self.levels or self.bits == 8):
            raise ValueError("asymmetric codes have at most 6 bits, and neither keep, count nor levels")
        if self.levels is not None and (self.bits > 4 or len(self.levels) != 1 << self.bits):
            raise ValueError("levels are 8 integers with 3 bits, or 16 with 4")


def _unstructured(count: int, columns: int, dtypes: tuple[str, ...]) -> dict[str, Part]:
    """The stored tensors of a matrix with `count` nonzero values."""
    runs = -(-columns // RUN)
    return {"values": Part(count, dtypes, rows=1), "mask": Part(runs, ("I64",)), "offsets": Part(1, ("I64",))}


def refuse_scheme(scheme: Scheme, bits: int) -> None:
    """Raise ValueError for asymmetric codes of 8 bits, which no layout holds."""
    if scheme == "asymmetric" and bits == 8:
        raise ValueError('asymmetric codes have at most 6 bits: use fewer bits, or scheme = "symmetric"')


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
        return cls(version=max((_version(layout) for layout in layouts.values()), default=1), layouts=layouts)

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


def _version(layout: Packed) -> int:
    """The oldest version of the format that knows `layout`."""
    return layout.version if isinstance(layout, Quantised) else 2 if isinstance(layout, Unstructured) else 1


def _layout(name: str, values: msgspec.Raw) -> Packed:
    """The layout of the tensor `name`."""
    try:
        layout: Packed = msgspec.json.decode(values, type=Packed)
    except msgspec.DecodeError as error:
        raise ValueError(f"the layout of {name} is malformed: {error}") from None
    return layout
