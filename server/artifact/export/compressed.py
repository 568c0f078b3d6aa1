"""compressed-tensors' `pack-quantized`, read by transformers and vLLM: integer matrices in blocks, the rest at 16 bits.

A code is stored as code + 2^(bits - 1), 32 / bits of them in an int32, the first in the lowest bits; each group of
columns in a row has one scale.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.reader import Artifact
from server.artifact.export.huggingface import copy_files, write_settings
from server.artifact.export.settings import for_all
from server.artifact.export.shards import Shards
from server.errors import ExportError

IN_BLOCK = re.compile(r"\.\d+\.")
SCALES = (
    "The scales are float16, as in the artifact. transformers and vLLM turn them into the type they load a model in: "
    "in bfloat16 they lose three bits, up to 0.2 % of a weight; in float16 or float32 they are exact."
)


class Scheme(NamedTuple):
    """The quantisation of one matrix."""

    bits: int
    group: int


def write(artifact: Artifact, folder: Path, limit: int) -> tuple[int, int, list[str]]:
    """Write the export; returns the number of parameters, the bytes of weights, and notes on losses.

    Raises ExportError, before anything is written, if no matrix can be packed.
    """
    schemes, left = plan(artifact)
    if not schemes:
        why = next(iter(left.values()), "no matrix of a block is quantised")
        raise ExportError(f"{artifact.path} has nothing to pack: {why}; `--to hf` writes any artifact")
    shards, parameters, plain = Shards(folder, limit), 0, []
    for name in artifact.names():
        tensor = artifact.tensor(name)
        parameters += tensor.numel()
        if name not in schemes:
            shards.add(name, tensor)
            plain += [name] if tensor.dim() == 2 else []
            continue
        for part, stored in packed(artifact, name, schemes[name]).items():
            shards.add(name + part, stored)
    shards.close()
    settings = for_all(artifact.config) | {"quantization_config": _settings(schemes, plain)}
    write_settings(folder, settings)
    copy_files(artifact, folder)
    notes = [SCALES, *(f"Written at 16 bits: {name}, since {why}." for name, why in left.items())]
    return parameters, shards.bytes, notes


def plan(artifact: Artifact) -> tuple[dict[str, Scheme], dict[str, str]]:
    """The scheme of each quantised matrix that the format can hold, and for the others the reason why not."""
    schemes, left = {}, {}
    for name in artifact.names():
        layout = artifact.layout(name)
        if not isinstance(layout, Quantised):
            continue
        group = next((size for size in (128, 64, 32) if size <= layout.group and layout.columns % size == 0), None)
        if layout.transposed:
            left[name] = "the format has no transposed matrices"
        elif not IN_BLOCK.search(name):
            left[name] = "vLLM takes embeddings and head at 16 bits only"
        elif layout.asymmetric or layout.levels or layout.bits not in (4, 8):
            left[name] = f"vLLM computes with symmetric codes of 4 or 8 bits only, and it has {layout.kind}"
        elif group is None:
            left[name] = f"its {layout.columns} columns are not a multiple of 32"
        else:
            schemes[name] = Scheme(layout.bits, group)
    return schemes, left


def packed(artifact: Artifact, name: str, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of one matrix [rows, columns] in the format, by the suffix of their name."""
    layout, codes, scales = artifact.layout(name), artifact.codes(name), artifact.scales(name)
    assert isinstance(layout, Quantised)
    assert scales is not None
    groups = codes.shape[1] // scheme.group
    spread = scales.repeat_interleave(layout.group // scheme.group, dim=1)[:, :groups]
    return {
        "_packed": pack(codes, scheme.bits),
        "_scale": spread.contiguous(),
        "_shape": torch.tensor(codes.shape, dtype=torch.int64),
    }


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [rows, columns] as int32 [rows, columns * bits / 32], the first of each word in its lowest bits."""
    each = 32 // bits
    words = (codes.to(torch.int64) + (1 << (bits - 1))).view(codes.shape[0], -1, each)
    shifts = torch.arange(each) * bits
    return (words << shifts).sum(dim=2).to(torch.int32)  # sums above 2^31 wrap to the same bits


def _settings(schemes: Mapping[str, Scheme], plain: list[str]) -> dict[str, Any]:
    """The `quantization_config`: one group for all linears but the ignored ones, or by name if schemes differ."""
    by_scheme: dict[Scheme, list[str]] = defaultdict(list)
    for name, scheme in schemes.items():
        by_scheme[scheme].append(name.removesuffix(".weight"))
    same = len(by_scheme) == 1
    groups = {
        f"group_{number}": {
            "targets": ["Linear"] if same else names,
            "weights": {
                "num_bits": scheme.bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": scheme.group,
            },
        }
        for number, (scheme, names) in enumerate(by_scheme.items())
    }
    ignored = sorted({"lm_head", *(name.removesuffix(".weight") for name in plain)})
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "config_groups": groups,
        "ignore": ignored,
        "kv_cache_scheme": None,
    }
