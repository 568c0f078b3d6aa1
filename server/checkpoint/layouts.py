"""How one weight matrix lies on disk: dense, or balanced with k values in every 64 columns.

The layout of each tensor is written into the metadata of the safetensors file itself, so the file explains itself.
"""

from typing import Any

import msgspec

GROUP = 64
"""Columns that share one mask: a 64-bit word, and the width of the widest registers at 8 bits."""

FORMAT_VERSION = 1
METADATA_KEY = "secateur"


class Dense(msgspec.Struct, frozen=True, tag="dense", tag_field="layout"):
    """Every value is stored, as any safetensors reader expects."""


class Balanced(msgspec.Struct, frozen=True, tag="balanced", tag_field="layout"):
    """Exactly `keep` values of every 64 columns and a 64-bit mask: a fixed stride, whichever columns are kept.

    2:4 and 32:64 are both this layout with keep = 32. The tensor `NAME` is stored as `NAME.values`
    [rows, groups * keep] and `NAME.mask` [rows, groups], bit i of a mask standing for column i of its group.
    """

    keep: int
    columns: int


Layout = Dense | Balanced


class LayoutTable(msgspec.Struct, frozen=True):
    """What the metadata of `model.safetensors` says: a tensor that is not named here is dense."""

    version: int
    layouts: dict[str, Balanced]

    def metadata(self) -> dict[str, str]:
        """The safetensors metadata that carries this table."""
        return {"format": "pt", METADATA_KEY: msgspec.json.encode(self).decode()}

    @classmethod
    def read(cls, metadata: dict[str, Any] | None) -> "LayoutTable":
        """The table in `metadata`; an ordinary checkpoint has none, and all its tensors are dense."""
        text = (metadata or {}).get(METADATA_KEY)
        return msgspec.json.decode(text, type=cls) if text else cls(version=FORMAT_VERSION, layouts={})
