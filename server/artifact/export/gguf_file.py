"""GGUF for llama.cpp: integer matrices as Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0 with the same codes, all else in bfloat16.

These are blocks of 32 columns with a float16 scale, and a minimum in Q4_1 and Q5_1; a group of 64 or 128 becomes blocks
of equal scale. Codes of 3 bits are written in 4, those of 6 bits and of tables in 8.
Tensors are written one by one, so one is in memory at a time.
"""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy
import torch
from torch import Tensor

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.reader import Artifact
from server.artifact.export import gguf_model, gguf_tokenizer
from server.artifact.export.gguf_model import Shape

BLOCK = 32
BYTES, FLOATS = numpy.dtype("uint8"), numpy.dtype("float32")


class Entry(NamedTuple):
    """A tensor of the file."""

    name: str
    """llama.cpp's name."""
    shape: tuple[int, ...]
    kind: Any
    content: Callable[[], Tensor]
    """Returns its bytes, or its values in float32."""

    @property
    def bytes(self) -> int:
        """Bytes of its data."""
        size, each = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // int(size) * int(each)


def write(artifact: Artifact, folder: Path) -> tuple[int, int, list[str]]:
    """Write one GGUF file; returns the number of parameters, the bytes of weights, and notes on losses.

    Raises ExportError for an architecture, tensor or tokenizer that llama.cpp does not support.
    """
    shape = gguf_model.shape_of(artifact.path, artifact.config)
    names = gguf_model.tensor_names(artifact.path, artifact.names(), shape)
    types, left = plan(artifact)
    entries = [_entry(artifact, name, other, types.get(name), shape) for name, other in names.items()]
    entries += [_floats(name, tensor) for name, tensor in gguf_model.frequencies(shape)]
    writer = gguf.GGUFWriter(folder / f"{artifact.path.resolve().name}.gguf", gguf.MODEL_ARCH_NAMES[shape.architecture])
    try:
        notes = _describe(writer, artifact, shape, types)
        for name, dims, kind, _ in entries:
            stored = FLOATS if kind == gguf.GGMLQuantizationType.F32 else BYTES
            size = dims if stored is FLOATS else gguf.quant_shape_to_byte_shape(dims, kind)
            writer.add_tensor_info(name, size, stored, math.prod(size) * stored.itemsize, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(entry.content().numpy())
    finally:
        writer.close()
    parameters = sum(math.prod(artifact.shape(name)) for name in names)
    notes += [f"Written in bfloat16: {name}, since {why}." for name, why in left.items()]
    return parameters, sum(entry.bytes for entry in entries), notes


def plan(artifact: Artifact) -> tuple[dict[str, str], dict[str, str]]:
    """The type of each quantised matrix whose codes can be kept, and for the others the reason why not."""
    types: dict[str, str] = {}
    left: dict[str, str] = {}
    for name in artifact.names():
        layout = artifact.layout(name)
        if isinstance(layout, Quantised) and layout.columns % BLOCK:
            left[name] = f"llama.cpp's integers come in blocks of {BLOCK} columns, and it has {layout.columns}"
        elif isinstance(layout, Quantised) and layout.asymmetric and layout.bits == 6:
            left[name] = f"llama.cpp has no type for {layout.kind}"
        elif isinstance(layout, Quantised):
            types[name] = type_of(layout)
    return types, left


def type_of(layout: Quantised) -> str:
    """llama.cpp's smallest type that holds every code of `layout`, which is not of 6 asymmetric bits."""
    bits = 8 if layout.levels else layout.bits
    if bits > 5:
        return "Q8_0"
    return f"Q{max(bits, 4)}_{1 if layout.asymmetric else 0}"


def blocks(codes: Tensor, grid: Tensor, layout: Quantised) -> Tensor:
    """Codes [rows, columns] and their grid as the bytes of `type_of(layout)`, uint8 [rows, columns / 32 * size].

    Below 8 bits codes are made unsigned, and a byte holds 4 bits of two columns: column i in the low half, column
    i + 16 in the high half. The fifth bits of all columns come before them.
    """
    count, kind = codes.shape[1] // BLOCK, type_of(layout)
    spread = grid.repeat_interleave(layout.group // BLOCK, dim=1)[:, :count].half().contiguous()
    heads = spread.view(torch.uint8).view(len(codes), count, -1)
    runs = codes.reshape(-1, count, BLOCK)
    if kind == "Q8_0":
        return torch.cat([heads, runs.contiguous().view(torch.uint8)], dim=2).flatten(1)
    half = 0 if layout.asymmetric else 1 << (int(kind[1]) - 1)
    unsigned = (runs + half).to(torch.uint8)
    low = unsigned & 15
    body = low[..., : BLOCK // 2] | low[..., BLOCK // 2 :] << 4
    if kind[1] == "5":
        fifth = numpy.packbits((unsigned >> 4).numpy(), axis=2, bitorder="little")
        body = torch.cat([torch.from_numpy(fifth), body], dim=2)
    return torch.cat([heads, body], dim=2).flatten(1)


def _describe(writer: Any, artifact: Artifact, shape: Shape, types: dict[str, str]) -> list[str]:
    """Write the header's metadata; returns notes on losses."""
    most = Counter(types.values()).most_common(1)[0][0] if types else "BF16"
    writer.add_name(artifact.path.resolve().name)
    writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{most}"]))
    if types:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string("secateur.record", record.address(artifact.lineage))
    gguf_model.describe(writer, shape)
    vocabulary = int(artifact.config["vocab_size"])
    writer.add_vocab_size(vocabulary)
    return gguf_tokenizer.write(writer, artifact.path, vocabulary)


def _entry(artifact: Artifact, name: str, other: str, kind: str | None, shape: Shape) -> Entry:
    """The entry of one weight; vectors are float32, since llama.cpp computes norms and biases in float32."""
    dims = artifact.shape(name)
    if kind is not None:
        return Entry(other, dims, gguf.GGMLQuantizationType[kind], partial(_blocks, artifact, name, shape))
    if len(dims) == 1:
        return _floats(other, gguf_model.rows(name, artifact.tensor(name), shape))

    def content() -> Tensor:
        ordered = gguf_model.rows(name, artifact.tensor(name), shape)
        return ordered.bfloat16().contiguous().view(torch.uint8)

    return Entry(other, dims, gguf.GGMLQuantizationType.BF16, content)


def _floats(name: str, tensor: Tensor) -> Entry:
    """The entry of a float32 vector."""
    return Entry(name, tuple(tensor.shape), gguf.GGMLQuantizationType.F32, tensor.float)


def _blocks(artifact: Artifact, name: str, shape: Shape) -> Tensor:
    """The blocks of a quantised weight."""
    layout, scales = artifact.layout(name), artifact.scales(name)
    assert isinstance(layout, Quantised)
    assert scales is not None
    codes = gguf_model.rows(name, artifact.codes(name), shape)
    return blocks(codes, gguf_model.rows(name, scales, shape), layout)
