"""The grids of a GGUF base: codes, scales and minimums that an artifact keeps where no stage changes the matrix.

Covers Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, blocks of 32 columns with float16 scales. Products of scales of 6 bits, as in
k-quants, are no float16 numbers: such matrices stay at 16 bits.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType, GGUFReader
from numpy.typing import NDArray
from torch import Tensor

from pruning.model.weights import WeightSource
from server.artifact.checkpoint.quantised import dequantise

logger = logging.getLogger(__name__)

BLOCK = 32
"""Columns of a block."""
FIELDS = {"Q4_0": (1, 4), "Q4_1": (2, 4), "Q5_0": (1, 5), "Q5_1": (2, 5), "Q8_0": (1, 8)}
"""Float16 numbers at the start of a block (scale, minimum), and bits of a code, by type."""


class OnOwnGrid(WeightSource):
    """`source`, the dequantised weights of the GGUF file `path`, with the file's own grids as scales."""

    def __init__(self, source: WeightSource, path: Path, config: Mapping[str, Any]) -> None:
        self._source = source
        self._grids: dict[str, Tensor] = {}
        self.kinds: Counter[str] = Counter()
        """Number of matrices on each type's grid."""
        self.left: Counter[str] = Counter()
        """Number of quantised matrices of each type that are not on a grid that an artifact has."""
        places = _places(GGUFReader(path), config)
        for name in source.names():
            if (stored := places.get(name)) and stored.tensor_type.name not in ("F32", "F16", "BF16"):
                self._keep(name, stored, config)
        if self.kinds:
            logger.info("matrices that keep the file's codes unless a stage changes them: %s", _listed(self.kinds))
        if self.left:
            logger.info("matrices on a grid that no layout holds, at 16 bits: %s", _listed(self.left))

    def names(self) -> list[str]:
        """All names of the source."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """The source's weight."""
        return self._source.tensor(name)

    def scales(self, name: str) -> Tensor | None:
        """The grid of a weight that lies on one, as `WeightSource.scales`; else None."""
        return self._grids.get(name)

    def _keep(self, name: str, stored: Any, config: Mapping[str, Any]) -> None:
        """Keep the grid of one weight if its codes can be told from its values in bfloat16."""
        kind = stored.tensor_type.name
        weight = self._source.tensor(name)
        if kind in FIELDS and weight.dim() == 2 and weight.shape[1] == int(stored.shape[0]):
            codes, grid = decoded(stored.data, kind)
            orders = _orders(name, len(weight), config) if told_apart(grid, 1 << FIELDS[kind][1]) else []
            for order in orders:
                if torch.equal(dequantise(codes[order], grid[order]), weight):
                    self._grids[name] = grid[order]
                    self.kinds[kind] += 1
                    return
        self.left[kind] += 1


def _listed(kinds: Counter[str]) -> str:
    """Counts by type, for a log line."""
    return ", ".join(f"{count} of {kind}" for kind, count in kinds.items())


def decoded(data: NDArray[numpy.uint8], kind: str) -> tuple[Tensor, Tensor]:
    """Codes, int8 [rows, columns], and grid of a tensor of type `kind` from its bytes [rows, bytes]."""
    numbers, bits = FIELDS[kind]
    size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = torch.from_numpy(numpy.array(data)).view(len(data), -1, size)
    heads = blocks[..., : 2 * numbers].contiguous().view(torch.float16)
    body = blocks[..., 2 * numbers :]
    if bits == 8:
        codes = body.contiguous().view(torch.int8)
    else:
        halves = body[..., -BLOCK // 2 :]
        codes = torch.cat([halves & 15, halves >> 4], dim=2)
        if bits == 5:  # the fifth bits, of all columns, come first
            fifth = numpy.unpackbits(body[..., :4].contiguous().numpy(), axis=2, bitorder="little")
            codes |= torch.from_numpy(fifth) << 4
        codes = codes.view(torch.int8)
        if numbers == 1:
            codes = codes - (1 << (bits - 1))
    return codes.flatten(1), heads if numbers == 2 else heads[..., 0].contiguous()


def told_apart(grid: Tensor, codes: int) -> bool:
    """Whether bfloat16, which keeps 8 significant bits, has another value for each of the `codes` of every group."""
    if grid.dim() == 2:
        return codes <= 256
    scales, minimums = grid.float().unbind(2)
    largest = torch.maximum(minimums.abs(), (minimums + scales * (codes - 1)).abs())
    return bool(((scales == 0) | (largest < 128 * scales.abs())).all())


def _places(reader: GGUFReader, config: Mapping[str, Any]) -> dict[str, Any]:
    """The stored tensor of each Hugging Face name."""
    architecture = str(reader.fields["general.architecture"].contents())
    known = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        return {}
    table = gguf.get_tensor_name_map(known[architecture], int(config["num_hidden_layers"])).mapping
    tensors = {str(tensor.name): tensor for tensor in reader.tensors}
    pairs = ((f"{name}.weight", f"{place}.weight") for name, (_, place) in table.items())
    return {name: tensors[place] for name, place in pairs if place in tensors}


def _orders(name: str, rows: int, config: Mapping[str, Any]) -> list[Tensor]:
    """Orders of a weight's rows in the file that llama.cpp's converter may have made: none, or of rotary halves."""
    plain = torch.arange(rows)
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads is None or heads not in config or rows % (2 * config[heads]):
        return [plain]
    return [plain.view(config[heads], -1, 2).transpose(1, 2).flatten(), plain]
